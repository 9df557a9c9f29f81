//! Moments as the API writes them, and ages as people read them.

use jiff::{SignedDuration, Timestamp};

/// `2026-01-02T03:04:05Z`: what fields of type Time hold.
pub fn rfc3339(at: Timestamp) -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", at).expect("the format has no field that a moment lacks")
}

/// `2026-01-02T03:04:05.000006Z`: what fields of type MicroTime hold.
pub fn rfc3339_micro(at: Timestamp) -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%S.%6fZ", at)
        .expect("the format has no field that a moment lacks")
}

/// Reads a moment of either form.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// The moment that many seconds later, kept within what can be written.
pub fn after(at: Timestamp, seconds: i64) -> Timestamp {
    let span = SignedDuration::from_secs(seconds);
    at.checked_add(span).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// How long ago `since` was at `now`: what a column AGE says. A moment to come is `0s`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    duration(now.as_second().saturating_sub(since.as_second()))
}

/// `47s`, `9m5s`, `34m`, `5h2m`, `2d4h`, `300d`, `3y20d`: at most two units, the second only while it says something.
pub fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_as_kubectl_prints_it() {
        for (seconds, expect) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (5 * 3600 + 120, "5h2m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (52 * 3600, "2d4h"),
            (8 * 86400, "8d"),
            (729 * 86400, "729d"),
            (730 * 86400, "2y"),
            (750 * 86400, "2y20d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(duration(seconds), expect, "{seconds}");
        }
    }

    #[test]
    fn a_moment_is_written_with_the_digits_of_its_type() {
        let at: Timestamp = "2026-01-02T03:04:05.000006789Z".parse().unwrap();
        assert_eq!(rfc3339(at), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339_micro(at), "2026-01-02T03:04:05.000006Z");
        assert_eq!(parse(&rfc3339(at)).map(Timestamp::as_second), Some(at.as_second()));
    }

    #[test]
    fn a_moment_beyond_the_calendar_stays_at_its_end() {
        assert_eq!(after(Timestamp::MAX, i64::MAX), Timestamp::MAX);
        assert_eq!(after(Timestamp::MIN, i64::MIN), Timestamp::MIN);
    }
}
