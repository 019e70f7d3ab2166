//! Pipeline stages: which layers each holds.

use std::ops::Range;

use super::refusal::{Refusal, RefusalKind};

/// Contiguous runs of layers, one a stage: layers are divided evenly and the remainder goes to the stages before
/// the last, never to the last (vLLM 0.32.0, `distributed/utils.py`, `get_pp_indices`). A `partition` given by the
/// user wins.
///
/// # Errors
/// A [`Refusal`] if the partition does not add up.
pub fn stages(layers: u64, count: u64, partition: Option<&[u64]>) -> Result<Vec<Range<u64>>, Refusal> {
    let refuse = |reason: String| Err(Refusal::new(RefusalKind::PipelineParallel, reason));
    let sizes: Vec<u64> = if let Some(partition) = partition {
        if partition.len() as u64 != count {
            return refuse(format!(
                "the layer partition names {} stages, but --pipeline-parallel-size is {count}",
                partition.len()
            ));
        }
        let sum = partition.iter().try_fold(0_u64, |sum, &n| sum.checked_add(n));
        if sum != Some(layers) {
            return refuse(format!(
                "the layer partition does not add up to the model's {layers} layers"
            ));
        }
        partition.to_vec()
    } else {
        let (each, rest) = (layers / count, layers % count);
        (0..count)
            .map(|stage| {
                let from_end = count - stage;
                each + u64::from(from_end >= 2 && from_end < rest + 2)
            })
            .collect()
    };
    let mut start = 0;
    Ok(sizes
        .into_iter()
        .map(|size| {
            let range = start..start + size;
            start += size;
            range
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(layers: u64, count: u64) -> Vec<u64> {
        stages(layers, count, None)
            .unwrap()
            .into_iter()
            .map(|range| range.end - range.start)
            .collect()
    }

    #[test]
    fn the_remainder_goes_to_stages_before_the_last() {
        assert_eq!(sizes(61, 2), [31, 30]);
        assert_eq!(sizes(62, 4), [15, 16, 16, 15]);
        assert_eq!(sizes(63, 4), [16, 16, 16, 15]);
        assert_eq!(sizes(2, 4), [0, 1, 1, 0]);
        assert!(stages(10, 2, Some(&[4, 4])).is_err());
        assert_eq!(stages(10, 2, Some(&[4, 6])).unwrap(), [0..4, 4..10]);
    }
}
