//! One line of a log file: `2026-01-02T03:04:05.000000006Z stdout F text`.
//!
//! `F` ends a line of the program; `P` is a piece of a line that was too long for one record.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest text of one record; a longer line becomes several.
pub(crate) const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Which of its two outputs the program wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// One record, borrowed from its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// The time as it stands in the file.
    pub(crate) stamp: &'a [u8],
    /// Whether the program's line ends here.
    pub(crate) ends_line: bool,
    pub(crate) text: &'a [u8],
}

/// Reads a line without its newline. `None` where the line is not ours: cut by a full disk, or foreign.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let stamp = parts.next()?;
    let output = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    let known = matches!(output, b"stdout" | b"stderr") && matches!(tag, b"F" | b"P");
    known.then_some(Record { stamp, ends_line: tag == b"F", text })
}

/// Appends a record and its newline to `out`.
pub(crate) fn write(out: &mut Vec<u8>, now: SystemTime, output: Output, ends_line: bool, text: &[u8]) {
    write_stamp(out, now);
    out.extend_from_slice(match output {
        Output::Stdout => b" stdout ",
        Output::Stderr => b" stderr ",
    });
    out.extend_from_slice(if ends_line { b"F " } else { b"P " });
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// The moment of a stamp such as `2026-01-02T03:04:05.6Z`; only what [`write`] makes need be understood.
pub(crate) fn parse_stamp(stamp: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(stamp).ok()?.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let nanos = fraction.parse::<u32>().ok()? * 10_u32.pow(9 - u32::try_from(fraction.len()).ok()?);
    let seconds =
        u64::try_from(days_from_civil(year, month, day)).ok()? * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::new(seconds, nanos))
}

/// RFC 3339 in UTC with nanoseconds.
fn write_stamp(out: &mut Vec<u8>, now: SystemTime) {
    // A clock before 1970 has no place in the format; such a machine has not set its clock yet.
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_from_days(i64::try_from(seconds / 86_400).unwrap_or(0));
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanos = since_epoch.subsec_nanos();
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
        .expect("writing into memory does not fail");
}

/// Days since 1970-01-01 of a date of the Gregorian calendar.
///
/// Years begin in March here, so that the leap day comes last and months have a regular pattern.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        for (seconds, nanos) in
            [(0, 0), (951_782_399, 1), (951_782_400, 999_999_999), (1_790_000_000, 5), (4_107_542_400, 0)]
        {
            let now = UNIX_EPOCH + Duration::new(seconds, nanos);
            let mut line = Vec::new();
            write(&mut line, now, Output::Stderr, false, b"a b  c");
            let record = parse(line.strip_suffix(b"\n").expect("a newline")).expect("a record");
            assert_eq!(parse_stamp(record.stamp), Some(now));
            assert!(!record.ends_line);
            assert_eq!(record.text, b"a b  c");
        }
    }

    #[test]
    fn the_stamp_is_the_calendar_day() {
        let mut out = Vec::new();
        write_stamp(&mut out, UNIX_EPOCH + Duration::new(1_709_164_799, 7));
        assert_eq!(String::from_utf8_lossy(&out), "2024-02-28T23:59:59.000000007Z");
    }

    #[test]
    fn foreign_bytes_are_no_record() {
        for line in [&b""[..], b"x", b"2026-01-01T00:00:00Z stdout", b"t nowhere F x", b"t stdout Q x"] {
            assert_eq!(parse(line), None);
        }
        for stamp in [
            &b""[..],
            b"Z",
            b"2026-13-01T00:00:00Z",
            b"2026-01-01T00:00:00.Z",
            b"9-9-9T9:9:9.1234567890Z",
            b"\xffZ",
        ] {
            assert_eq!(parse_stamp(stamp), None);
        }
    }
}
