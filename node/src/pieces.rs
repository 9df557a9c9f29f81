//! Bytes that arrive in pieces on an async task, read by blocking code.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;

/// Pieces under way: enough that neither side waits for the other's every step.
const UNDER_WAY: usize = 4;

/// The reading end: ends when the writing end is dropped.
pub(crate) struct Pieces {
    pieces: Receiver<Bytes>,
    rest: Bytes,
}

/// The writing end.
pub(crate) struct Feeder(SyncSender<Bytes>);

pub(crate) fn channel() -> (Feeder, Pieces) {
    let (sender, pieces) = sync_channel(UNDER_WAY);
    (Feeder(sender), Pieces { pieces, rest: Bytes::new() })
}

impl Feeder {
    /// Hands over a piece, waiting while the reader is slower. `false` once nobody reads any more.
    pub(crate) async fn feed(&self, piece: Bytes) -> bool {
        let sender = self.0.clone();
        tokio::task::spawn_blocking(move || sender.send(piece).is_ok()).await.unwrap_or(false)
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.rest = piece,
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}
