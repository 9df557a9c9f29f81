//! A segment's name and header.
//!
//! Segments are numbered in the order they were begun, not by their first index: after a truncation
//! a younger segment may begin at a smaller index than an older one.
//!
//! ```text
//! "SKEINLOG" | format u32 | sequence u32 | node 16 | store 8 | crc u32
//! ```

use crate::VoterId;

/// Where the segments lie.
pub(super) const DIRECTORY: &str = "log";
/// Bytes before the first record.
pub(super) const HEADER: usize = 44;
/// What this build writes, and the newest it reads.
pub(super) const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"SKEINLOG";
const SUFFIX: &str = ".seg";

/// What names a segment: nobody else's fits in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u32,
    pub(super) voter: VoterId,
}

/// Why a header is not the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file ends before the header does.
    Short,
    Damaged,
    NewerFormat(u32),
    /// Sound, but of another voter or another place in the sequence.
    Foreign,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.voter.node);
        bytes[32..40].copy_from_slice(&self.voter.store);
        let sum = crc32c::crc32c(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// What the sums of the segment's records start from.
    pub(super) fn salt(self) -> u32 {
        crc32c::crc32c(&self.to_bytes())
    }

    /// Checks that `file` begins with this header.
    pub(super) fn check(self, file: &[u8]) -> Result<(), Fault> {
        let header = file.get(..HEADER).ok_or(Fault::Short)?;
        let format = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        if header.starts_with(MAGIC) && format > FORMAT {
            // A later format may sum its header otherwise, so this is asked first.
            return Err(Fault::NewerFormat(format));
        }
        if header[40..] != crc32c::crc32c(&header[..40]).to_le_bytes() || !header.starts_with(MAGIC) {
            return Err(Fault::Damaged);
        }
        if header == self.to_bytes() { Ok(()) } else { Err(Fault::Foreign) }
    }
}

/// The file of segment `sequence`.
pub(super) fn file_name(sequence: u32) -> String {
    format!("{DIRECTORY}/{sequence:010}{SUFFIX}")
}

/// The sequence in a name that [`file_name`] made.
pub(super) fn sequence_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(SUFFIX)?;
    let sequence = digits.parse().ok()?;
    (digits.len() == 10 && sequence > 0).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_its_sequence_back() {
        let name = file_name(42);
        assert_eq!(name, "log/0000000042.seg");
        assert_eq!(sequence_of("0000000042.seg"), Some(42));
        for other in ["42.seg", "0000000000.seg", "0000000042.tmp", "99999999999.seg", "00000000x2.seg"] {
            assert_eq!(sequence_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_header_fits_in_its_own_place_only() {
        let header = Header { sequence: 3, voter: VoterId { node: [1; 16], store: [2; 8] } };
        let bytes = header.to_bytes();
        assert_eq!(header.check(&bytes), Ok(()));
        assert_eq!(Header { sequence: 4, ..header }.check(&bytes), Err(Fault::Foreign));
        assert_eq!(Header { voter: VoterId::default(), ..header }.check(&bytes), Err(Fault::Foreign));
        assert_eq!(header.check(&bytes[..43]), Err(Fault::Short));
        for at in 0..HEADER {
            let mut flipped = bytes;
            flipped[at] ^= 1;
            assert!(header.check(&flipped).is_err(), "flip at {at}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(header.check(&newer), Err(Fault::NewerFormat(2)));
    }
}
