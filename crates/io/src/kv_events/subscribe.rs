//! A subscription to KV events: reconnects, numbers batches, asks for missed ones.

use std::hash::RandomState;
use std::time::Duration;

use kvwise_core::{Error, Result};

use super::batch::{self, Batch};
use super::zmtp::Connection;

/// How long one wait for a batch may take.
const POLL: Duration = Duration::from_millis(200);
/// How long a replay may be silent.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(5);

/// What a wait brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrival {
    /// Nothing within the poll time.
    Nothing,
    /// Batches in order; the first ones may be replayed.
    Batches(Vec<Batch>),
    /// Batches in order after so many that are lost for good.
    AfterLoss(u64, Vec<Batch>),
    /// The publisher began to count anew: it was restarted.
    Restarted(Vec<Batch>),
}

/// A subscription.
#[derive(Debug)]
pub struct Subscription {
    endpoint: String,
    replay: Option<String>,
    key: RandomState,
    connection: Option<Connection>,
    next: Option<u64>,
}

impl Subscription {
    /// Subscribes to everything at `endpoint`; `replay` is vLLM's `replay_endpoint`.
    ///
    /// # Errors
    /// If the endpoint cannot be used or nobody answers there.
    pub fn new(endpoint: &str, replay: Option<&str>) -> Result<Self> {
        let mut made = Self {
            endpoint: endpoint.to_owned(),
            replay: replay.map(str::to_owned),
            key: RandomState::new(),
            connection: None,
            next: None,
        };
        made.connect()?;
        Ok(made)
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    fn connect(&mut self) -> Result<()> {
        let mut connection = Connection::open(&self.endpoint, "SUB", Duration::from_secs(2))?;
        connection.subscribe(b"")?;
        connection.set_timeout(POLL)?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Waits a moment for batches; connects again if the connection is gone.
    ///
    /// # Errors
    /// If the publisher is not reached or sends something else; calling again tries again.
    pub fn poll(&mut self) -> Result<Arrival> {
        let Some(connection) = &mut self.connection else {
            self.connect()?;
            return Ok(Arrival::Nothing);
        };
        let parts = match connection.receive() {
            Ok(Some(parts)) => parts,
            Ok(None) => return Ok(Arrival::Nothing),
            Err(e) => {
                self.connection = None;
                return Err(e);
            }
        };
        let (seq, batch) = self.read(&parts)?;
        Ok(self.in_order(seq, batch))
    }

    fn read(&self, parts: &[Vec<u8>]) -> Result<(u64, Batch)> {
        let [_topic, seq, payload] = parts else {
            return Err(Error::input(format!(
                "{}: a message of {} parts, not topic, number and batch",
                self.endpoint,
                parts.len()
            )));
        };
        let seq: [u8; 8] = seq
            .as_slice()
            .try_into()
            .map_err(|_| Error::input(format!("{}: a batch without a number", self.endpoint)))?;
        let batch = batch::read(payload, &self.key).map_err(|e| e.at(&self.endpoint))?;
        Ok((u64::from_be_bytes(seq), batch))
    }

    fn in_order(&mut self, seq: u64, batch: Batch) -> Arrival {
        let expected = self.next.replace(seq + 1);
        match expected {
            // the first batch: earlier ones can be replayed, which gives the content from the engine's start
            None if seq > 0 && self.replay.is_some() => match self.fill(0, seq, batch) {
                // the publisher's memory is bounded: what is older than it was never expected
                Arrival::AfterLoss(_, batches) => Arrival::Batches(batches),
                arrival => arrival,
            },
            None => Arrival::Batches(vec![batch]),
            Some(next) if seq == next => Arrival::Batches(vec![batch]),
            Some(next) if seq < next => Arrival::Restarted(vec![batch]),
            Some(next) => self.fill(next, seq, batch),
        }
    }

    /// Asks for batches `from..to` and puts `last` behind them.
    fn fill(&mut self, from: u64, to: u64, last: Batch) -> Arrival {
        let mut got = self.replayed(from, to).unwrap_or_default();
        let lost = (to - from) - got.len() as u64;
        got.push(last);
        if lost == 0 {
            Arrival::Batches(got)
        } else {
            Arrival::AfterLoss(lost, got)
        }
    }

    fn replayed(&self, from: u64, to: u64) -> Option<Vec<Batch>> {
        let mut connection = Connection::open(self.replay.as_deref()?, "DEALER", REPLAY_TIMEOUT).ok()?;
        connection.send(&[b"", &from.to_be_bytes()]).ok()?;
        let mut found: Vec<(u64, Batch)> = Vec::new();
        // empty delimiter, topic, number, batch; the number -1 ends
        while let Ok(Some(parts)) = connection.receive() {
            let [_, topic, seq, payload] = parts.as_slice() else {
                break;
            };
            if seq.as_slice() == [0xff; 8] {
                break;
            }
            let Ok((seq, batch)) = self.read(&[topic.clone(), seq.clone(), payload.clone()]) else {
                break;
            };
            if (from..to).contains(&seq) {
                found.push((seq, batch));
            }
        }
        // only what joins the live stream without a hole is of use
        found.sort_by_key(|f| f.0);
        found.dedup_by_key(|f| f.0);
        let mut expected = to;
        let whole = found
            .iter()
            .rev()
            .take_while(|f| {
                let joins = f.0 + 1 == expected;
                expected = f.0;
                joins
            })
            .count();
        Some(
            found
                .split_off(found.len() - whole)
                .into_iter()
                .map(|f| f.1)
                .collect(),
        )
    }
}
