//! A document as it is kept and sent.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

/// A document, compressed: most clients take it so.
#[derive(Clone, Debug)]
pub struct Document {
    hash: String,
    gzip: Vec<u8>,
}

impl Document {
    pub(super) fn new(plain: &[u8]) -> Self {
        let hash = Sha256::digest(plain).iter().map(|byte| format!("{byte:02X}")).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).expect("memory can be written to");
        Self { hash, gzip: encoder.finish().expect("memory can be written to") }
    }

    /// Another text has another hash: 64 hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The text, as `Content-Encoding: gzip` has it.
    pub fn gzip(&self) -> &[u8] {
        &self.gzip
    }

    /// The text. Costs its decompression, some milliseconds.
    pub fn plain(&self) -> Vec<u8> {
        unpacked(&self.gzip)
    }
}

/// What our own compression packed.
pub(super) fn unpacked(gzip: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(gzip).read_to_end(&mut plain).expect("what we compressed ourselves can be read");
    plain
}
