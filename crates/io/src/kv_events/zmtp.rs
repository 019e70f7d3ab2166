//! ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) as a client without security: greeting, READY, frames.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use kvwise_core::{Error, Result};

/// Largest message that is read.
const MAX_MESSAGE_BYTES: u64 = 256 << 20;
/// Most parts of a message.
const MAX_PARTS: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A connection to one peer.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    place: String,
    /// A frame that arrived in part before the time was over.
    buffer: Vec<u8>,
    /// The first parts of a message of which the last has not come yet.
    parts: Vec<Vec<u8>>,
}

/// The host and port of `tcp://host:port`.
///
/// # Errors
/// If the endpoint has another form.
pub fn parse_endpoint(endpoint: &str) -> Result<&str> {
    let address = endpoint.strip_prefix("tcp://").unwrap_or(endpoint);
    let valid = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && host != "*" && port.parse::<u16>().is_ok());
    if valid && !address.contains('/') {
        return Ok(address);
    }
    Err(Error::input(format!("{endpoint}: not an endpoint of KV events"))
        .hint("give tcp://HOST:PORT, with the server's host in place of *"))
}

impl Connection {
    /// Connects as a socket of type `socket` (`SUB`, `DEALER`) and shakes hands.
    ///
    /// # Errors
    /// If the peer is not reached in time, or does not speak ZMTP 3 without security.
    pub fn open(endpoint: &str, socket: &str, timeout: Duration) -> Result<Self> {
        let place = endpoint.to_owned();
        let io = |e: std::io::Error| Error::io(format!("{endpoint}: {e}"));
        let address = parse_endpoint(endpoint)?
            .to_socket_addrs()
            .map_err(io)?
            .next()
            .ok_or_else(|| Error::io(format!("{endpoint}: no such host")))?;
        let stream = TcpStream::connect_timeout(&address, timeout).map_err(io)?;
        stream.set_read_timeout(Some(timeout)).map_err(io)?;
        stream.set_write_timeout(Some(timeout)).map_err(io)?;
        let mut connection = Self {
            stream,
            place,
            buffer: Vec::new(),
            parts: Vec::new(),
        };
        connection.greet()?;
        connection.ready(socket)?;
        Ok(connection)
    }

    fn fail(&self, what: &str) -> Error {
        Error::input(format!("{}: {what}", self.place))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .map_err(|e| Error::io(format!("{}: {e}", self.place)))
    }

    fn greet(&mut self) -> Result<()> {
        let mut greeting = [0_u8; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3; // version 3.0
        greeting[12..16].copy_from_slice(b"NULL");
        self.write(&greeting)?;
        let mut theirs = [0_u8; 64];
        self.stream
            .read_exact(&mut theirs)
            .map_err(|_| self.fail("no ZeroMQ greeting: is this the port of the KV events?"))?;
        if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 {
            return Err(self.fail("not a ZeroMQ 3 peer: is this the port of the KV events?"));
        }
        if &theirs[12..16] != b"NULL" {
            return Err(self.fail("the peer wants a secured connection, which is not supported"));
        }
        Ok(())
    }

    fn ready(&mut self, socket: &str) -> Result<()> {
        let mut body = b"\x05READY\x0bSocket-Type".to_vec();
        body.extend_from_slice(&u32::try_from(socket.len()).unwrap_or(0).to_be_bytes());
        body.extend_from_slice(socket.as_bytes());
        body.extend_from_slice(b"\x08Identity\0\0\0\0");
        let length = u8::try_from(body.len()).map_err(|_| self.fail("socket type too long"))?;
        let mut frame = vec![COMMAND, length];
        frame.extend_from_slice(&body);
        self.write(&frame)?;
        let (flags, body) = self.frame()?.ok_or_else(|| self.fail("no handshake in time"))?;
        if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
            return Err(self.fail("the handshake was refused"));
        }
        Ok(())
    }

    /// How long a read waits from now on.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<()> {
        self.stream
            .set_read_timeout(Some(timeout))
            .map_err(|e| Error::io(format!("{}: {e}", self.place)))
    }

    /// Sends one message of several parts.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        for (i, part) in parts.iter().enumerate() {
            let more = if i + 1 < parts.len() { MORE } else { 0 };
            let mut frame = Vec::with_capacity(part.len() + 9);
            if let Ok(length) = u8::try_from(part.len()) {
                frame.extend_from_slice(&[more, length]);
            } else {
                frame.push(more | LONG);
                frame.extend_from_slice(&(part.len() as u64).to_be_bytes());
            }
            frame.extend_from_slice(part);
            self.write(&frame)?;
        }
        Ok(())
    }

    /// Subscribes to a topic; the empty one is everything.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn subscribe(&mut self, topic: &[u8]) -> Result<()> {
        let mut message = vec![1];
        message.extend_from_slice(topic);
        self.send(&[&message])
    }

    /// The next message, or `None` if no whole one came within the timeout (what came is kept).
    ///
    /// # Errors
    /// If the connection is gone or what comes is not ZMTP.
    pub fn receive(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        loop {
            let Some((flags, body)) = self.frame()? else {
                return Ok(None);
            };
            if flags & COMMAND != 0 {
                continue; // nothing that a 3.0 peer must answer
            }
            self.parts.push(body);
            if flags & MORE == 0 {
                return Ok(Some(std::mem::take(&mut self.parts)));
            }
            if self.parts.len() > MAX_PARTS {
                return Err(self.fail("a message of too many parts"));
            }
        }
    }

    /// One frame; `None` if no whole frame came within the timeout (what came is kept).
    fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((flags, start, end)) = self.whole_frame()? {
                let body = self.buffer.get(start..end).unwrap_or_default().to_vec();
                self.buffer.drain(..end);
                return Ok(Some((flags, body)));
            }
            let mut chunk = [0_u8; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(Error::io(format!(
                        "{}: the peer closed the connection",
                        self.place
                    )));
                }
                Ok(n) => self.buffer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(format!("{}: {e}", self.place))),
            }
        }
    }

    /// Flags, and where the body of the first frame in the buffer starts and ends.
    fn whole_frame(&self) -> Result<Option<(u8, usize, usize)>> {
        let Some(&flags) = self.buffer.first() else {
            return Ok(None);
        };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(self.fail("not a ZeroMQ frame"));
        }
        let start = if flags & LONG == 0 { 2 } else { 9 };
        let Some(length) = self.buffer.get(1..start) else {
            return Ok(None);
        };
        let length = length.iter().fold(0_u64, |v, b| v << 8 | u64::from(*b));
        if length > MAX_MESSAGE_BYTES {
            return Err(self.fail("a message that is too large"));
        }
        let end = start + usize::try_from(length).map_err(|_| Error::overflow("a message's length"))?;
        Ok((self.buffer.len() >= end).then_some((flags, start, end)))
    }
}
