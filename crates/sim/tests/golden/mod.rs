//! Answers that equalled an engine's, kept as fingerprints.

/// How many answers there are, and the 64-bit FNV-1a of their text.
pub fn fingerprint(count: usize, text: impl IntoIterator<Item = u8>) -> String {
    let hash = text.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{count} {hash:016x}")
}
