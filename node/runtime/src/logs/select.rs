//! Which records of a log a reader wants, and what of them.

use std::time::SystemTime;

use super::LogOptions;
use super::record::{self, Record};

/// Turns records into the bytes a reader asked for. Give it each line of the log once, in order.
pub(crate) struct Selection {
    not_before: Option<SystemTime>,
    /// Lines of the program to leave out before the first one that is wanted.
    skip_lines: u64,
    bytes_left: Option<u64>,
    timestamps: bool,
    /// Whether the next record begins a line of the program.
    at_line_start: bool,
}

impl Selection {
    /// The selection for `options` over a log that holds `lines` lines from `not_before` on.
    ///
    /// `lines` is only asked for where it matters: with `tail_lines`.
    pub(crate) fn new(
        options: &LogOptions,
        now: SystemTime,
        lines: impl FnOnce(Option<SystemTime>) -> u64,
    ) -> Self {
        let since = options.since.and_then(|since| now.checked_sub(since));
        let not_before = since.max(options.since_time);
        let skip_lines = options.tail_lines.map_or(0, |tail| lines(not_before).saturating_sub(tail));
        let (bytes_left, timestamps) = (options.limit_bytes, options.timestamps);
        Self { not_before, skip_lines, bytes_left, timestamps, at_line_start: true }
    }

    /// Adds what is wanted of `line` (without its newline) to `out`.
    pub(crate) fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = record::parse(line) else { return };
        if is_before(&record, self.not_before) {
            return;
        }
        if self.skip_lines > 0 {
            self.skip_lines -= u64::from(record.ends_line);
            return;
        }
        let begin = out.len();
        if self.timestamps && self.at_line_start {
            out.extend_from_slice(record.stamp);
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if record.ends_line {
            out.push(b'\n');
        }
        self.at_line_start = record.ends_line;
        if let Some(left) = &mut self.bytes_left {
            let wanted = u64::try_from(out.len() - begin).unwrap_or(u64::MAX).min(*left);
            out.truncate(begin + usize::try_from(wanted).unwrap_or(usize::MAX));
            *left -= wanted;
        }
    }

    /// Whether no further record can add anything.
    pub(crate) fn is_done(&self) -> bool {
        self.bytes_left == Some(0)
    }
}

/// Whether the record is older than asked for. One without a readable time is shown rather than lost.
pub(crate) fn is_before(record: &Record<'_>, not_before: Option<SystemTime>) -> bool {
    not_before.is_some_and(|limit| record::parse_stamp(record.stamp).is_some_and(|at| at < limit))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const LOG: &[&str] = &[
        "1970-01-01T00:00:10.000000000Z stdout F one",
        "1970-01-01T00:00:20.000000000Z stdout P tw",
        "1970-01-01T00:00:20.000000000Z stdout F o",
        "1970-01-01T00:00:30.000000000Z stderr F three",
    ];

    #[track_caller]
    fn check(options: &LogOptions, expect: &str) {
        let now = UNIX_EPOCH + Duration::from_secs(35);
        let count = |not_before| {
            let records = LOG.iter().filter_map(|line| record::parse(line.as_bytes()));
            records.filter(|record| record.ends_line && !is_before(record, not_before)).count() as u64
        };
        let mut selection = Selection::new(options, now, count);
        let mut out = Vec::new();
        for line in LOG {
            selection.push(line.as_bytes(), &mut out);
        }
        assert_eq!(String::from_utf8_lossy(&out), expect);
    }

    #[test]
    fn each_option_chooses_what_kubectl_means_by_it() {
        let all = LogOptions::default();
        check(&all, "one\ntwo\nthree\n");
        check(&LogOptions { tail_lines: Some(2), ..all.clone() }, "two\nthree\n");
        check(&LogOptions { tail_lines: Some(0), ..all.clone() }, "");
        check(&LogOptions { since: Some(Duration::from_secs(10)), ..all.clone() }, "three\n");
        check(
            &LogOptions { since_time: Some(UNIX_EPOCH + Duration::from_secs(20)), ..all.clone() },
            "two\nthree\n",
        );
        check(&LogOptions { limit_bytes: Some(6), ..all.clone() }, "one\ntw");
        let stamped = LogOptions { timestamps: true, tail_lines: Some(2), ..all };
        check(&stamped, "1970-01-01T00:00:20.000000000Z two\n1970-01-01T00:00:30.000000000Z three\n");
    }
}
