//! What one layer keeps between tokens.

use crate::dtype::Dtype;

/// One cache of a layer. Most attention layers have one; some (Zamba2, Falcon-H1, DeepSeek-V3.2) have several.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// Module path below the layer, as the engine names it (`self_attn.attn`); names drafts' and groups' members.
    pub name: String,
    /// Its shape and rule.
    pub kind: CacheKind,
}

/// Heads of an ordinary attention cache, before tensor parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Key/value heads of the whole layer.
    pub kv_heads: u64,
    /// Elements of one key vector.
    pub head_dim: u64,
    /// Elements of one value vector; equals `head_dim` in most models.
    pub head_dim_v: u64,
    /// Whether the cache follows `--kv-cache-dtype` (Falcon's layers do not).
    pub follows_kv_dtype: bool,
}

/// The rule by which a cache grows, and the size of one entry.
#[derive(Debug, Clone, PartialEq)]
pub enum CacheKind {
    /// Keys and values of every token.
    Full(Heads),
    /// Keys and values of the last `window` tokens.
    Sliding {
        /// Shape of one entry.
        heads: Heads,
        /// Tokens in the window as the engine's spec has it.
        window: u64,
    },
    /// Keys and values of the current chunk of `chunk` tokens (Llama-4).
    Chunked {
        /// Shape of one entry.
        heads: Heads,
        /// Tokens in a chunk.
        chunk: u64,
    },
    /// One latent vector a token, replicated on every tensor-parallel rank (DeepSeek MLA).
    Latent {
        /// Elements of the latent: `kv_lora_rank + qk_rope_head_dim`.
        width: u64,
        /// Elements of a query or key head that rotary embedding leaves alone (`qk_nope_head_dim`); some kernels
        /// (FlashInfer MLA) take few values only, which decides backend and block size.
        nope: u64,
        /// Elements of the latent that rotary embedding turns (`qk_rope_head_dim`).
        rope: u64,
        /// Whether a sparse indexer selects the tokens (DeepSeek-V3.2), which decides backend and fp8 layout.
        sparse: bool,
    },
    /// One latent vector of each of the last `window` tokens, replicated on every tensor-parallel rank (Dots3).
    SlidingLatent {
        /// Elements of the latent.
        width: u64,
        /// Tokens in the window.
        window: u64,
    },
    /// Key cache of a sparse-attention indexer, one uint8 vector a token.
    Indexer {
        /// Bytes of one entry (`index_head_dim + index_head_dim / 128 * 4`).
        bytes_per_token: u64,
        /// Tokens in a block of the kernel that reads it, which every attention layer beside it must take too:
        /// 64, or 128 in MiniMax-M3.
        kernel_block: u64,
    },
    /// Index keys of which each stands for a pool of tokens (GLM-5-Next, Qwen4-Exp).
    PooledIndexer {
        /// Bytes of one entry.
        bytes_per_entry: u64,
        /// Tokens that one entry covers.
        pool: u64,
        /// Whether a kernel reads it in pages of 32 or 64 entries; otherwise any block will do.
        paged: bool,
    },
    /// Raw keys of the pool that is still being filled, one block a request (`CircularBufferSpec`).
    Ring {
        /// Vectors a token.
        vectors: u64,
        /// 16-bit elements of one vector.
        width: u64,
        /// Tokens of a pool.
        pool: u64,
        /// Whether room for draft tokens comes in powers of two of pools, and on every rank of decode context
        /// parallelism (GLM-5-Next).
        doubling: bool,
    },
    /// DeepSeek-V4 attention: a sliding window of latents, for `ratio` > 1 also one state per `ratio` tokens with its
    /// compressor's window, and for `ratio` 4 an indexer. One of these a layer stands for all of them: an engine
    /// that keeps them as several caches splits it up.
    Compressed {
        /// Tokens per stored state (`compress_ratios[i]`); 0 or 1 for a layer with the window alone.
        ratio: u64,
        /// Elements of one latent (`head_dim`).
        head_dim: u64,
        /// Tokens in the window (`sliding_window`).
        window: u64,
        /// Elements of an indexer key (`index_head_dim`).
        index_head_dim: u64,
    },
    /// DeepSeek-V4.1 attention: a sliding window of latents, and states of `ratio` tokens each that one layer stores for
    /// itself and for the layers behind it. One of these a layer stands for all that it keeps.
    SharedCompressed {
        /// Tokens per state it attends to (`compress_ratios[i]`); 0 for a layer with the window alone.
        ratio: u64,
        /// Layers between the one that stores those states and this one; 0 where it stores them itself.
        behind: u64,
        /// Elements of one latent (`head_dim`).
        head_dim: u64,
        /// Tokens in the window (`sliding_window`).
        window: u64,
        /// Elements of an index key that it stores beside its states (`index_head_dim`); 0 without.
        index_head_dim: u64,
        /// Groups of the output projection (`o_groups`), which a kernel on Blackwell counts.
        output_groups: u64,
    },
    /// State of a causal convolution kept as a sliding window whose block is the window itself (Inkling).
    ConvWindow {
        /// Shape of one entry; `head_dim_v` is 0, all streams are packed into `head_dim`.
        heads: Heads,
        /// Tokens in the window and in a block.
        window: u64,
    },
    /// Recurrent state, constant in the sequence length.
    State(State),
    /// Keys and values of the encoder's output.
    Cross(Heads),
}

/// A recurrent layer's state tensors, before tensor parallelism. Element types are `None` where they follow the
/// model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Mamba-1: conv `(kernel-1, inner)`, ssm `(inner, state)`.
    Mamba1 {
        /// Channels.
        inner: u64,
        /// State elements a channel.
        state: u64,
        /// Taps of the convolution.
        kernel: u64,
        /// Element type of the convolution's state.
        conv: Option<Dtype>,
        /// Element type of the recurrent state.
        ssm: Option<Dtype>,
    },
    /// Mamba-2: conv `(kernel-1, inner + 2*groups*state)`, ssm `(heads, head_dim, state)`.
    Mamba2 {
        /// Channels.
        inner: u64,
        /// Groups that share input and output matrices; more ranks than groups replicate them.
        groups: u64,
        /// State heads.
        heads: u64,
        /// Channels a head.
        head_dim: u64,
        /// State elements a channel.
        state: u64,
        /// Taps of the convolution.
        kernel: u64,
        /// Element type of the convolution's state.
        conv: Option<Dtype>,
        /// Element type of the recurrent state.
        ssm: Option<Dtype>,
    },
    /// Gated delta net: conv `(kernel-1, 2*k_heads*k_dim + v_heads*v_dim)`, state `(v_heads, v_dim, k_dim)`.
    GatedDelta {
        /// Key (and query) heads.
        k_heads: u64,
        /// Value heads.
        v_heads: u64,
        /// Elements of a key head.
        k_dim: u64,
        /// Elements of a value head.
        v_dim: u64,
        /// Taps of the convolution.
        kernel: u64,
        /// Element type of the convolution's state.
        conv: Option<Dtype>,
        /// Element type of the recurrent state.
        ssm: Option<Dtype>,
    },
    /// Kimi delta attention: conv `(kernel-1, 3*heads*dim)`, state `(heads, dim, dim)`, the second float32 by default.
    Kda {
        /// Heads.
        heads: u64,
        /// Elements of a head.
        dim: u64,
        /// Taps of the convolution.
        kernel: u64,
        /// Whether the model's own kernel exports a checkpoint inside a prefill (Kimi-K3, GLM-5-Next; not Kimi-Linear).
        checkpoint: bool,
        /// Element type of the convolution's state.
        conv: Option<Dtype>,
        /// Element type of the recurrent state.
        ssm: Option<Dtype>,
    },
    /// Lightning (linear) attention: one tensor `(heads, dim, dim)`.
    Linear {
        /// Heads.
        heads: u64,
        /// Elements of a head.
        dim: u64,
        /// Element type of the state.
        dtype: Option<Dtype>,
    },
    /// Short convolution: `(kernel-1, hidden)`.
    ShortConv {
        /// Channels.
        hidden: u64,
        /// Taps of the convolution.
        kernel: u64,
        /// Whether every tensor-parallel rank keeps all channels.
        whole: bool,
    },
}
