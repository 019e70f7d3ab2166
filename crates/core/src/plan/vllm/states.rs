//! What decode graphs ask of a pool with recurrent states.

use crate::arch::{CacheKind, Model};
use crate::engine::vllm::{Layout, Settings, Version};

/// Since this release the engine refuses graphs for more sequences than the pool has blocks (`config/compilation.py` of
/// 0.19.1, which captured fewer, and 0.20.0).
const REFUSES: Version = Version::new(0, 20, 0);

/// What happens when graphs are captured, where the pool has fewer blocks than a step has sequences: each of a recurrent
/// model's sequences needs a block (vLLM 0.32.0, `config/compilation.py`, `resolve_cudagraph_mode_and_sizes`). The check
/// runs only where whole decode steps are captured, which the attention backend decides; so this is a warning.
pub(super) fn too_few_blocks(model: &Model, settings: &Settings, layout: &Layout) -> Option<String> {
    let recurrent = model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| matches!(cache.kind, CacheKind::State(_)));
    if !recurrent
        || settings.enforce_eager
        || settings.version < REFUSES
        || layout.num_blocks >= layout.max_num_seqs
    {
        return None;
    }
    Some(format!(
        "max_num_seqs ({}) exceeds available Mamba cache blocks ({}): vLLM will not start where it captures graphs of whole \
         decode steps; --max-num-seqs {} or --enforce-eager will",
        layout.max_num_seqs,
        layout.num_blocks,
        layout.num_blocks.max(1)
    ))
}
