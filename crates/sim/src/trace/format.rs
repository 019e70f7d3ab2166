//! The trace formats by name.

use std::fmt;
use std::str::FromStr;

use kvwise_core::Error;

/// A file format of traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TraceFormat {
    /// JSON lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids`; an id names a whole prefix.
    Mooncake,
    /// JSON lines: `id`, `arrival`, `tokens` or `hash_ids`, lengths, output tokens, priority, salts.
    Tokens,
    /// kv-cache-tester: a folder of JSON files, one agent conversation each.
    Agentic,
    /// Azure `LLMInferenceTrace`: CSV of times and lengths.
    Azure,
    /// Qwen-Bailian: JSON lines with `chat_id`, `parent_chat_id`, `timestamp` (s), `hash_ids` of 16 tokens.
    Bailian,
    /// BurstGPT: CSV of times and lengths.
    BurstGpt,
    /// ShareGPT conversations as text (needs a tokenizer).
    ShareGpt,
    /// OpenAI chat requests as text (needs a tokenizer).
    OpenAi,
    /// Parquet with the columns of the other formats.
    Parquet,
    /// A session that kvwise recorded.
    Session,
    /// Not read from a file: generated.
    Generated,
}

impl TraceFormat {
    /// All formats that can be asked for by name.
    pub const READABLE: [Self; 10] = [
        Self::Mooncake,
        Self::Tokens,
        Self::Agentic,
        Self::Azure,
        Self::Bailian,
        Self::BurstGpt,
        Self::ShareGpt,
        Self::OpenAi,
        Self::Parquet,
        Self::Session,
    ];

    /// The format's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mooncake => "mooncake",
            Self::Tokens => "tokens",
            Self::Agentic => "agentic",
            Self::Azure => "azure",
            Self::Bailian => "bailian",
            Self::BurstGpt => "burstgpt",
            Self::ShareGpt => "sharegpt",
            Self::OpenAi => "openai",
            Self::Parquet => "parquet",
            Self::Session => "session",
            Self::Generated => "generated",
        }
    }

    /// Whether arrival times are seconds (in the `tokens` format they may also be scheduler steps).
    pub fn times_are_seconds(self) -> bool {
        self != Self::Tokens
    }
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TraceFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::READABLE
            .into_iter()
            .find(|f| f.name() == text)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::READABLE.iter().map(|f| f.name()).collect();
                Error::not_found(format!("unknown trace format \"{text}\""))
                    .hint(format!("known: {}", names.join(", ")))
            })
    }
}
