//! Who holds which block over time, from recorded block events.

use kvwise_core::Result;
use kvwise_io::session::Session;
use kvwise_io::session::series::{self, BlockChange};

use crate::report::session::BlockMap;

/// Rows of the map.
const ROWS: usize = 128;
/// Columns of the map.
const COLUMNS: usize = 240;

/// Makes the map of one process; `None` if no block event was recorded.
///
/// A block is held from its allocation, or the hit that took it out of the free list, until it is freed. Hits of a
/// block that is held already change nothing.
///
/// # Errors
/// If the database cannot be read.
pub fn map(session: &Session, process: i64, num_blocks: i64) -> Result<Option<BlockMap>> {
    let (mut first, mut last) = (None, None);
    series::block_changes(&session.db, process, |t_us, _, _| {
        first.get_or_insert(t_us);
        last = Some(t_us);
    })?;
    let (Some(from), Some(to)) = (first, last) else {
        return Ok(None);
    };
    let count = usize::try_from(num_blocks).unwrap_or(0);
    if count == 0 || to <= from {
        return Ok(None);
    }
    let per_row = count.div_ceil(ROWS);
    let rows = count.div_ceil(per_row);
    let mut grid = Grid {
        held_us: vec![0; rows * COLUMNS],
        from,
        width: (to - from) as f64 / COLUMNS as f64,
        per_row,
    };
    let mut since: Vec<Option<i64>> = vec![None; count];
    series::block_changes(&session.db, process, |t_us, change, blocks| {
        for &block in blocks {
            let Some(slot) = since.get_mut(block) else {
                continue;
            };
            match change {
                BlockChange::Taken => {
                    slot.get_or_insert(t_us);
                }
                BlockChange::Freed => {
                    if let Some(start) = slot.take() {
                        grid.hold(block, start, t_us);
                    }
                }
            }
        }
    })?;
    for (block, slot) in since.iter().enumerate() {
        if let Some(start) = slot {
            grid.hold(block, *start, to);
        }
    }
    Ok(Some(BlockMap {
        from_s: from as f64 / 1e6,
        to_s: to as f64 / 1e6,
        blocks_per_row: per_row,
        rows: grid.rows(count),
    }))
}

struct Grid {
    held_us: Vec<i64>,
    from: i64,
    width: f64,
    per_row: usize,
}

impl Grid {
    /// Adds the time from `start` to `end` to the cells it crosses.
    fn hold(&mut self, block: usize, start: i64, end: i64) {
        let row = block / self.per_row;
        let edge = |column: usize| self.from as f64 + column as f64 * self.width;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the number of columns"
        )]
        let first = (((start - self.from) as f64 / self.width).max(0.0) as usize).min(COLUMNS - 1);
        for column in first..COLUMNS {
            let (left, right) = (edge(column).max(start as f64), edge(column + 1).min(end as f64));
            if right <= left {
                break;
            }
            #[expect(clippy::cast_possible_truncation, reason = "microseconds of one cell")]
            let time = (right - left) as i64;
            self.held_us[row * COLUMNS + column] += time;
        }
    }

    fn rows(&self, count: usize) -> Vec<String> {
        self.held_us
            .chunks(COLUMNS)
            .enumerate()
            .map(|(row, cells)| {
                let blocks = self.per_row.min(count - row * self.per_row) as f64;
                cells
                    .iter()
                    .map(|held| {
                        let share = *held as f64 / (self.width * blocks);
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            reason = "one digit"
                        )]
                        let digit = (share * 9.0).ceil().clamp(0.0, 9.0) as u32;
                        char::from_digit(digit, 10).unwrap_or('0')
                    })
                    .collect()
            })
            .collect()
    }
}
