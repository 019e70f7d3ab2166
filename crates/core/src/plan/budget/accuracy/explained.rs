//! Why the start-up logs that are furthest off are.

/// Why the rows that are furthest off are.
pub const EXPLAINED: [(u64, &str); 29] = [
    (
        148,
        "a drafter at 65,536 batched tokens beside a vision tower; the log does not split its 18 GiB",
    ),
    (
        234,
        "a community build for AMD with a drafter, whose graphs take 1.6 to 2 GiB",
    ),
    (
        348,
        "1.1 GiB of activations and graphs beside a vision tower: images were most likely switched off",
    ),
    (
        307,
        "0.2 GiB of activations: fewer sequences than the default, most likely",
    ),
    (118, "a warm compile cache, and graphs of 0.00 GiB in the log"),
    (
        155,
        "unified memory: the page cache gave memory back while the engine started",
    ),
    (144, "unified memory: as above"),
    (
        350,
        "unified memory: 0.1 GiB outside of PyTorch where the same cluster logged 2.3 to 4 on other days",
    ),
    (
        145,
        "unified memory, and a tower that the first collection's releases profile with more images",
    ),
    (
        401,
        "FlashInfer was not installed, without which this release sorts the logits; a plan cannot know",
    ),
    (403, "FlashInfer was not installed, as above"),
    (341, "unified memory: 2.2 GiB outside of PyTorch"),
    (139, "a community build for Windows, whose collectives are others"),
    (
        515,
        "an AMD GPU of RDNA 4 under a build from source: 2.3 GiB more than the tensors, as in the other log of this card",
    ),
    (
        525,
        "an MI50 under a community build: half of what the sort takes elsewhere",
    ),
    (
        529,
        "32,768 tokens a step through a sparse indexer and an all-reduce workspace of FlashInfer; 2 GiB of graphs",
    ),
    (344, "an AMD GPU: 3.9 GiB more than the tensors"),
    (
        356,
        "an AMD GPU: the sort of 4096 rows takes a third more than on NVIDIA's",
    ),
    (
        15,
        "1.8 GiB more activations than 8192 tokens or 256 sequences take: flags that the log does not show",
    ),
    (
        354,
        "an Intel GPU: 1.5 GiB outside of PyTorch, where the other log of this maker (Arc Pro B70) has 0.3",
    ),
    (
        611,
        "a community image for AMD of 0.29.0: 6.5 GiB stay allocated beside the weights, 2.7 of them outside of PyTorch",
    ),
    (
        610,
        "the same image on four GPUs: 4.6 GiB stay allocated beside the weights, 3.1 of them outside of PyTorch",
    ),
    (
        625,
        "a nightly of 0.17.1 whose warm-up kept 3.4 GiB; the nightly before it took 2.0 GiB in all",
    ),
    (
        603,
        "experts by a kernel chosen by hand (`--moe-backend cutlass`) under WSL: 3 GiB more than the tensors at 16,384 tokens",
    ),
    (
        602,
        "the same server at 4096 tokens: 1.2 GiB more than the tensors",
    ),
    (
        609,
        "an AMD R9700 under a community image with a drafter: 1.1 GiB more than the tensors",
    ),
    (
        613,
        "a tower on four ranks that takes less than a quarter of its share; 1.7 GiB in all",
    ),
    (
        342,
        "0.8 GiB more than the tensors of a model of 0.5B, in a notebook that does not show which",
    ),
    (
        617,
        "whole experts on eight ranks, whose kernel (Humming) takes half of what the others do",
    ),
];
