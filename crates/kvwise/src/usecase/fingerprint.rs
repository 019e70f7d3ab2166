//! Names of inputs: equal inputs have equal names, so that answers can be told apart and searches can go on.

use kvwise_sim::trace::{Prompt, Trace};

use super::traffic::Traffic;

/// A 64-bit name (FNV-1a) of what was written to it, in order.
#[derive(Debug, Clone)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// Writes bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Writes all of a trace that can change a simulation: lengths, times, priorities, shared content, sessions and what
    /// keeps prefixes apart.
    pub fn trace(&mut self, trace: &Trace) {
        for i in 0..trace.len() {
            self.bytes(&trace.input_len(i).to_le_bytes());
            self.bytes(&trace.output_len(i).to_le_bytes());
            self.bytes(&trace.arrival(i).unwrap_or(-1.0).to_bits().to_le_bytes());
            self.bytes(&trace.priority(i).to_le_bytes());
            self.bytes(&trace.session(i).unwrap_or(u32::MAX).to_le_bytes());
            match trace.prompt(i) {
                Prompt::Unknown => {}
                Prompt::Tokens(tokens) => tokens.iter().for_each(|t| self.bytes(&t.to_le_bytes())),
                Prompt::Blocks(path) => {
                    for run in path.runs() {
                        self.bytes(&run.first.to_le_bytes());
                        self.bytes(&run.len.to_le_bytes());
                    }
                }
            }
            for key in [trace.lora(i), trace.cache_salt(i), trace.extra_key(i)] {
                // The byte tells no key from an empty one, and ends each.
                self.bytes(key.unwrap_or_default().as_bytes());
                self.bytes(&[u8::from(key.is_some())]);
            }
        }
    }

    /// Writes recorded or described traffic, and its seed.
    pub fn traffic(&mut self, t: &Traffic) {
        if let Some(trace) = &t.trace {
            self.trace(trace);
        }
        let described = (t.input_len, t.output_len, t.length_ratio, t.burstiness);
        let shape = (t.requests, t.speed, t.turns, t.think_s, &t.adapters, t.seed);
        let parts = (t.concurrency, t.rate, described, shape);
        self.bytes(&serde_json::to_vec(&parts).unwrap_or_default());
    }

    /// The name in 16 hexadecimal digits.
    pub fn name(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};

    use super::*;

    fn name(ids: &[u64], arrival: f64, salt: Option<&str>) -> String {
        let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
        for prompt in [&[1_u64, 2][..], ids] {
            builder
                .push(&NewRequest {
                    arrival: Some(arrival),
                    input_len: Some(32),
                    output_len: Some(4),
                    prompt: PromptIds::Blocks(prompt),
                    cache_salt: salt,
                    ..NewRequest::default()
                })
                .unwrap();
        }
        let mut name = Fingerprint::default();
        name.trace(&builder.finish());
        name.name()
    }

    #[test]
    fn traces_of_equal_lengths_are_told_apart_by_times_contents_and_salts() {
        let same = name(&[1, 2], 1.0, None);
        assert_eq!(same, name(&[1, 2], 1.0, None));
        for other in [
            name(&[1, 3], 1.0, None),
            name(&[7, 3], 1.0, None),
            name(&[1, 2], 1.5, None),
            name(&[1, 2], 1.0, Some("")),
            name(&[1, 2], 1.0, Some("a")),
        ] {
            assert_ne!(same, other);
        }
    }
}
