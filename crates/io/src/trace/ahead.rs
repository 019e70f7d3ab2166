//! Decompression on a thread of its own, a few pieces ahead of whoever reads them.
//!
//! Decompressing a trace takes about half as long as scanning its lines, so on two cores a compressed trace is read as fast
//! as a plain one. The pieces come in order and are the same on any number of threads; at most [`AHEAD`] are waiting.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

/// Bytes of a piece.
const PIECE: usize = 256 * 1024;
/// Pieces made before somebody has to take one.
const AHEAD: usize = 3;

/// A piece and how much of it is filled; an end is an empty one.
type Piece = (Vec<u8>, usize);

/// Reads another reader from a thread.
#[derive(Debug)]
pub(super) struct Ahead {
    made: Receiver<io::Result<Piece>>,
    used: Sender<Vec<u8>>,
    piece: Piece,
    at: usize,
    ended: bool,
}

impl Ahead {
    /// Starts the thread. It ends with its reader, and when nobody wants its pieces any more.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn new(reader: impl Read + Send + 'static) -> io::Result<Self> {
        let (make, made) = sync_channel(AHEAD);
        let (used, reuse) = channel();
        thread::Builder::new()
            .name("decompress".to_owned())
            .spawn(move || fill(reader, &make, &reuse))?;
        Ok(Self {
            made,
            used,
            piece: (Vec::new(), 0),
            at: 0,
            ended: false,
        })
    }
}

/// What the thread does.
fn fill(mut reader: impl Read, make: &SyncSender<io::Result<Piece>>, reuse: &Receiver<Vec<u8>>) {
    loop {
        let mut bytes = reuse.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
        let mut filled = 0;
        let failed = loop {
            match reader.read(&mut bytes[filled..]) {
                Ok(0) => break None,
                Ok(n) => {
                    filled += n;
                    if filled == bytes.len() {
                        break None;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Some(e),
            }
        };
        // what came before an error is read before it
        let last = filled == 0;
        if make.send(Ok((bytes, filled))).is_err() || last && failed.is_none() {
            return;
        }
        if let Some(e) = failed {
            let _ = make.send(Err(e));
            return;
        }
    }
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.1 && !self.ended {
            let next = self.made.recv();
            let empty = std::mem::take(&mut self.piece.0);
            if !empty.is_empty() {
                let _ = self.used.send(empty);
            }
            (self.piece.1, self.at) = (0, 0);
            match next {
                // the thread sends an end or an error before it goes
                Ok(Ok((_, 0))) => {}
                Ok(Ok(piece)) => self.piece = piece,
                Ok(Err(e)) => {
                    self.ended = true;
                    return Err(e);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.piece.0[self.at..self.piece.1])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.piece.1);
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut waiting = self.fill_buf()?;
        let n = waiting.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in odd portions, then an error if there is one.
    struct Portions {
        bytes: Vec<u8>,
        at: usize,
        error: Option<io::ErrorKind>,
    }

    impl Read for Portions {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.at == self.bytes.len() {
                return self.error.take().map_or(Ok(0), |kind| Err(kind.into()));
            }
            let n = (self.bytes.len() - self.at).min(out.len()).min(10_007);
            out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
            self.at += n;
            Ok(n)
        }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..=250u8).cycle().take(len).collect()
    }

    #[test]
    fn all_bytes_come_in_order_whatever_their_number() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 77] {
            let reader = Portions {
                bytes: bytes(len),
                at: 0,
                error: None,
            };
            let mut out = Vec::new();
            Ahead::new(reader).unwrap().read_to_end(&mut out).unwrap();
            assert!(out == bytes(len), "{len}");
        }
    }

    #[test]
    fn an_error_comes_after_the_bytes_before_it() {
        for len in [0, 100, PIECE, 2 * PIECE + 5] {
            let mut ahead = Ahead::new(Portions {
                bytes: bytes(len),
                at: 0,
                error: Some(io::ErrorKind::UnexpectedEof),
            })
            .unwrap();
            let mut out = vec![0; len];
            ahead.read_exact(&mut out).unwrap();
            assert!(out == bytes(len), "{len}");
            let error = ahead.read(&mut [0; 10]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(ahead.read(&mut [0; 10]).unwrap(), 0);
        }
    }

    /// Never ends, and tells when it is gone.
    struct Endless(Sender<()>);

    impl Read for Endless {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            Ok(out.len())
        }
    }

    impl Drop for Endless {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn a_reader_that_is_dropped_ends_the_thread() {
        let (told, end) = channel();
        drop(Ahead::new(Endless(told)).unwrap());
        end.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    }
}
