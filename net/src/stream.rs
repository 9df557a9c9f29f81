//! A stream between two nodes: frames in order, each no longer than the reader allows.
//!
//! A frame is its length as four bytes, big end first, and its bytes. A writer that is done says so with
//! [`Sender::finish`]; one that is merely dropped resets the stream, so that nobody takes half an answer
//! for a whole one.

use std::io;

use bytes::{Bytes, BytesMut};
use quinn::VarInt;

/// Longest frame unless a reader sets another limit: a batch of log entries, or a piece of a snapshot.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Memory is taken as bytes arrive, in steps of this size: a peer has to send what it makes us hold.
const READ_BYTES: usize = 64 * 1024;

/// Code of a stream that its writer gave up.
const ABANDONED: VarInt = VarInt::from_u32(1);
/// Code of a stream that its reader no longer wants, or whose frame was too long.
const UNWANTED: VarInt = VarInt::from_u32(2);

/// Why a stream broke. It is of no use any more; whether the last frame arrived is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection or the stream ended; open a new one.
    #[error("the stream broke: {reason}; open it again")]
    Broken {
        /// What QUIC says.
        reason: String,
    },
    /// Not sent, or not read; the stream is closed.
    #[error("a frame of {bytes} bytes, the limit is {bytes_max}; split it")]
    TooLong {
        /// Length of the frame.
        bytes: usize,
        /// What was allowed.
        bytes_max: usize,
    },
    /// The peer ended in the middle of a frame.
    #[error("the stream ended within a frame; open it again")]
    Truncated,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Broken { .. } => io::ErrorKind::ConnectionReset,
            Error::TooLong { .. } => io::ErrorKind::InvalidData,
            Error::Truncated => io::ErrorKind::UnexpectedEof,
        };
        io::Error::new(kind, error)
    }
}

fn broken(error: impl std::error::Error) -> Error {
    // QUIC's errors say "connection lost" and keep the interesting part for their source.
    let reason = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Error::Broken { reason }
}

/// Both directions of one stream.
#[derive(Debug)]
pub struct Stream {
    /// Frames to the peer.
    pub tx: Sender,
    /// Frames from the peer.
    pub rx: Receiver,
}

/// The writing half.
#[derive(Debug)]
pub struct Sender {
    stream: quinn::SendStream,
    is_done: bool,
}

impl Sender {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self { stream, is_done: false }
    }

    /// Sends one frame; waits while the peer does not keep up. Not to be cancelled half way: what follows
    /// would then be read as part of this frame.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), Error> {
        let length = u32::try_from(frame.len()).ok().filter(|_| frame.len() <= FRAME_BYTES_MAX);
        let Some(length) = length else {
            return Err(Error::TooLong { bytes: frame.len(), bytes_max: FRAME_BYTES_MAX });
        };
        let mut parts = [Bytes::copy_from_slice(&length.to_be_bytes()), frame];
        self.stream.write_all_chunks(&mut parts).await.map_err(broken)
    }

    /// Says that this was the last frame: the peer's reader ends with `None`.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.is_done = true;
        self.stream.finish().map_err(broken)
    }

    /// Waits until the peer has everything (`Ok`), or gave up reading.
    pub async fn delivered(&mut self) -> Result<(), Error> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => {
                Err(Error::Broken { reason: format!("the peer stopped reading with code {code}") })
            }
            Err(error) => Err(broken(error)),
        }
    }

    /// Streams of higher priority are sent first; 0 at first.
    pub fn set_priority(&mut self, priority: i32) {
        // Fails only for a stream that is gone, which the next write tells.
        let _ = self.stream.set_priority(priority);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.is_done {
            // Fails only if the stream is closed already, which is what is wanted.
            let _ = self.stream.reset(ABANDONED);
        }
    }
}

/// The reading half.
#[derive(Debug)]
pub struct Receiver {
    stream: quinn::RecvStream,
    /// Read, but not yet handed out: the start of the next frame.
    buffer: BytesMut,
    frame_bytes_max: usize,
}

impl Receiver {
    pub(crate) fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), frame_bytes_max: FRAME_BYTES_MAX }
    }

    /// Sets the longest frame that is taken; a longer one closes the stream unread.
    pub fn limit(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// The next frame; `None` after the peer's last one. May be cancelled without loss.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_BYTES, true).await.map_err(broken)? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::Truncated),
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(*length) as usize;
        if bytes > self.frame_bytes_max {
            // Fails only if the stream is closed already.
            let _ = self.stream.stop(UNWANTED);
            return Err(Error::TooLong { bytes, bytes_max: self.frame_bytes_max });
        }
        if self.buffer.len() < 4 + bytes {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(4 + bytes).freeze();
        Ok(Some(frame.split_off(4)))
    }
}
