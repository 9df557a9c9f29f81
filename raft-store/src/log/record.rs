//! One record of the log's stream, and the difference between a torn one and a damaged one.
//!
//! ```text
//! length u32 | kind u8 | index u64 | head crc u32 | payload | crc u32 | END
//! ```
//!
//! Little endian, crc32c. The head's sum starts from the segment's salt and the record's offset, so
//! no bytes inside a value, nor a block written to the wrong place, can pass for a record. The sum at
//! the end goes on from the head's, over the payload. [`END`] is not zero, so that a file that ends
//! in zeros shows that its last write did not arrive.
//!
//! A record that begins a batch says whether everything before it was synced when it was written
//! ([`LEADS`]). So a bad record with such a one behind it is damage for certain, and never dropped.

/// Bytes before the payload.
pub(super) const HEAD: usize = 17;
/// Bytes around the payload.
pub(super) const FRAME: usize = HEAD + 5;
/// Set in the kind: everything before this record was synced before this record was written.
const LEADS: u8 = 0x80;
/// Last byte of every record.
const END: u8 = 0xA5;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What a record says. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Vote, purge point, committed and last entry as they were when the segment began.
    State = 1,
    Entry = 2,
    Vote = 3,
    /// Entries from the record's index on are void.
    Truncate = 4,
    Purge = 5,
    Committed = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [State, Entry, Vote, Truncate, Purge, Committed].into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A record as it lies in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    pub(super) payload: &'a [u8],
    /// From the first byte of the head to the end mark.
    pub(super) length: usize,
}

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file ends before the record does.
    Short,
    Head,
    Body,
    /// All sums are right, so a newer build wrote it.
    UnknownKind(u8),
}

/// Appends the record that will lie at offset `at` of the segment with `salt`.
pub(super) fn write(
    buffer: &mut Vec<u8>,
    (salt, at): (u32, u64),
    (kind, index, leads): (Kind, u64, bool),
    payload: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEAD]);
    payload(buffer);
    let length = buffer.len() - start - HEAD;
    let length_field = u32::try_from(length).expect("a value has at most 16 MiB").to_le_bytes();
    let head = &mut buffer[start..start + HEAD];
    head[..4].copy_from_slice(&length_field);
    head[4] = kind as u8 | if leads { LEADS } else { 0 };
    head[5..13].copy_from_slice(&index.to_le_bytes());
    let head_sum = sum_head(&head[..13], salt, at);
    head[13..].copy_from_slice(&head_sum.to_le_bytes());
    let sum = crc32c::crc32c_append(head_sum, &buffer[start + HEAD..]);
    buffer.extend_from_slice(&sum.to_le_bytes());
    buffer.push(END);
    length + FRAME
}

/// The record at the beginning of `bytes`, which lie at offset `at` of the segment with `salt`.
pub(super) fn read(bytes: &[u8], salt: u32, at: u64) -> Result<Record<'_>, Fault> {
    let head = bytes.get(..HEAD).ok_or(Fault::Short)?;
    if !head_is_sound(head, salt, at) {
        return Err(Fault::Head);
    }
    let payload_length = u32_at(head, 0) as usize;
    let length = payload_length + FRAME;
    let record = bytes.get(..length).ok_or(Fault::Short)?;
    let (payload, tail) = record[HEAD..].split_at(payload_length);
    if u32_at(tail, 0) != crc32c::crc32c_append(u32_at(head, 13), payload) || tail[4] != END {
        return Err(Fault::Body);
    }
    let kind = Kind::from_byte(head[4] & !LEADS).ok_or(Fault::UnknownKind(head[4] & !LEADS))?;
    let index = u64::from_le_bytes(head[5..13].try_into().expect("eight bytes"));
    Ok(Record { kind, index, payload, length })
}

/// Whether the bad record at offset `at` of the last segment, whose bytes are `file`, can be what a
/// power cut leaves of a write that was never acknowledged: the end is missing or zero, or a whole
/// sector within never arrived.
///
/// Errs towards "no", with one exception that cannot be told apart: a flipped bit in the very last
/// batch, in a record whose own payload has a whole sector of zeros.
pub(super) fn is_torn(file: &[u8], salt: u32, at: usize, fault: Fault) -> bool {
    match fault {
        Fault::Short => true,
        Fault::UnknownKind(_) => false,
        Fault::Head | Fault::Body => has_hole(file, at) && !is_synced(file, salt, at),
    }
}

/// Whether some sector of `file[at..]` is zero from end to end.
fn has_hole(file: &[u8], at: usize) -> bool {
    let mut start = at;
    while start < file.len() {
        let end = file.len().min((start / SECTOR + 1) * SECTOR);
        let whole_or_last = end == file.len() || start.is_multiple_of(SECTOR);
        // A few zeros before the first boundary are ordinary; a head of zeros is not.
        if (whole_or_last || end - start >= HEAD) && file[start..end].iter().all(|&byte| byte == 0) {
            return true;
        }
        start = end;
    }
    false
}

/// Whether a record behind `at` says that what is at `at` was synced.
fn is_synced(file: &[u8], salt: u32, at: usize) -> bool {
    (at + 1..file.len().saturating_sub(HEAD - 1)).any(|offset| {
        file[offset + 4] & LEADS != 0 && head_is_sound(&file[offset..offset + HEAD], salt, offset as u64)
    })
}

fn head_is_sound(head: &[u8], salt: u32, at: u64) -> bool {
    u32_at(head, 13) == sum_head(&head[..13], salt, at)
}

fn sum_head(fields: &[u8], salt: u32, at: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt, &at.to_le_bytes()), fields)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u32 = 77;

    fn record(at: u64, leads: bool, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = write(&mut bytes, (SALT, at), (Kind::Entry, 9, leads), |b| b.extend_from_slice(payload));
        assert_eq!(length, bytes.len());
        bytes
    }

    #[test]
    fn a_record_is_read_back() {
        let bytes = record(100, true, b"payload");
        let expected = Record { kind: Kind::Entry, index: 9, payload: b"payload", length: bytes.len() };
        assert_eq!(read(&bytes, SALT, 100), Ok(expected));
    }

    #[test]
    fn a_record_is_good_only_in_its_place() {
        let bytes = record(100, true, b"payload");
        assert_eq!(read(&bytes, SALT, 101), Err(Fault::Head));
        assert_eq!(read(&bytes, SALT + 1, 100), Err(Fault::Head));
    }

    #[test]
    fn every_cut_is_short_and_torn() {
        let bytes = record(0, true, b"payload");
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end], SALT, 0), Err(Fault::Short), "cut at {end}");
        }
        assert!(is_torn(&bytes[..5], SALT, 0, Fault::Short));
    }

    #[test]
    fn every_flipped_byte_is_noticed_and_not_torn() {
        let bytes = record(0, true, b"payload");
        for at in 0..bytes.len() {
            for mask in [1, 0x80, 0xff] {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                let fault = read(&flipped, SALT, 0).unwrap_err();
                assert!(matches!(fault, Fault::Head | Fault::Body), "flip at {at}: {fault:?}");
                assert!(!is_torn(&flipped, SALT, 0, fault), "flip at {at}");
            }
        }
    }

    #[test]
    fn a_zeroed_end_and_a_missing_sector_are_torn() {
        let bytes = record(0, true, &[1; 3000]);
        let zeroed = |from: usize, to: usize| {
            let mut bytes = bytes.clone();
            bytes[from..to].fill(0);
            let fault = read(&bytes, SALT, 0).unwrap_err();
            is_torn(&bytes, SALT, 0, fault)
        };
        assert!(zeroed(0, bytes.len()));
        assert!(zeroed(1024, bytes.len()));
        assert!(zeroed(512, 1024));
        assert!(zeroed(bytes.len() / SECTOR * SECTOR, bytes.len()));
        assert!(!zeroed(600, 1100), "less than a sector is not what a disk loses");
    }

    #[test]
    fn what_was_synced_is_never_torn() {
        let mut file = record(0, true, &[1; 3000]);
        let at = file.len() as u64;
        file.extend(record(at, false, b"same batch"));
        file[512..1024].fill(0);
        assert!(is_torn(&file, SALT, 0, Fault::Body), "nothing says that this was synced");
        file.extend(record(file.len() as u64, true, b"next batch"));
        assert!(!is_torn(&file, SALT, 0, Fault::Body), "the next batch says that it was");
    }
}
