//! Amounts of resources: `100m`, `1.5Gi`, `2e3`. Exact, and printed in Kubernetes' canonical form.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Parts of one: nothing smaller can be said.
const NANO: i128 = 1_000_000_000;

/// 2^63 - 1 whole units: upstream's bound. Larger amounts are held at it.
const MAX: i128 = i64::MAX as i128 * NANO;

/// Digits that a text may have. More can only be zeros or be lost anyway.
const DIGITS_MAX: usize = 64;

const DECIMAL: [(&str, i128); 10] = [
    ("E", 1_000_000_000_000_000_000 * NANO),
    ("P", 1_000_000_000_000_000 * NANO),
    ("T", 1_000_000_000_000 * NANO),
    ("G", 1_000_000_000 * NANO),
    ("M", 1_000_000 * NANO),
    ("k", 1_000 * NANO),
    ("", NANO),
    ("m", 1_000_000),
    ("u", 1_000),
    ("n", 1),
];

const BINARY: [(&str, i128); 6] = [
    ("Ei", (1 << 60) * NANO),
    ("Pi", (1 << 50) * NANO),
    ("Ti", (1 << 40) * NANO),
    ("Gi", (1 << 30) * NANO),
    ("Mi", (1 << 20) * NANO),
    ("Ki", (1 << 10) * NANO),
];

/// An exact amount. Equal and ordered by value: `1000m` is `1`; how it was written matters to printing only.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    style: Style,
}

/// Which suffixes an amount is printed with: those it was written with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Style {
    /// `100m`, `2k`.
    Decimal,
    /// `512Mi`.
    Binary,
    /// `2e3`.
    Exponent,
}

/// The text is no quantity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nano: 0, style: Style::Decimal };

    /// Thousandths: how processor time is counted.
    pub fn from_millis(millis: i64) -> Self {
        Self::new(i128::from(millis) * (NANO / 1000), Style::Decimal)
    }

    /// Bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self::new(i128::from(bytes) * NANO, Style::Binary)
    }

    /// Whole units.
    pub fn from_units(units: i64) -> Self {
        Self::new(i128::from(units) * NANO, Style::Decimal)
    }

    /// Thousandths, rounded up.
    pub fn millis(self) -> i64 {
        saturate(ceil(self.nano, NANO / 1000))
    }

    /// Whole units, rounded up.
    pub fn units(self) -> i64 {
        saturate(ceil(self.nano, NANO))
    }

    /// Whether it is less than nothing.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// The sum, printed in this one's style; held at the bounds.
    pub fn plus(self, other: Self) -> Self {
        Self::new(self.nano + other.nano, self.style)
    }

    /// The difference, printed in this one's style; held at the bounds.
    pub fn minus(self, other: Self) -> Self {
        Self::new(self.nano - other.nano, self.style)
    }

    fn new(nano: i128, style: Style) -> Self {
        Self { nano: nano.clamp(-MAX, MAX), style }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError);
        }
        let (unit, style) = unit(suffix)?;
        let magnitude = scale(whole, fraction, unit);
        Ok(Self::new(if negative { -magnitude } else { magnitude }, style))
    }
}

impl TryFrom<&Text> for Quantity {
    type Error = ParseError;

    fn try_from(text: &Text) -> Result<Self, ParseError> {
        text.0.parse()
    }
}

impl From<Quantity> for Text {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nano = self.nano;
        if nano == 0 {
            return f.write_str("0");
        }
        match self.style {
            // Below 1024 the binary form says nothing, and would lose a fraction.
            Style::Binary if nano.abs() >= 1024 * NANO => {
                let units = ceil(nano, NANO) * NANO;
                match BINARY.iter().find(|(_, unit)| units % unit == 0) {
                    Some((suffix, unit)) => write!(f, "{}{suffix}", units / unit),
                    None => write!(f, "{}", units / NANO),
                }
            }
            Style::Exponent => {
                let mut exponent = -9;
                let mut rest = nano;
                while rest % 1000 == 0 {
                    rest /= 1000;
                    exponent += 3;
                }
                if exponent == 0 { write!(f, "{rest}") } else { write!(f, "{rest}e{exponent}") }
            }
            Style::Binary | Style::Decimal => {
                let (suffix, unit) = DECIMAL
                    .iter()
                    .find(|(_, unit)| nano % unit == 0)
                    .expect("the last unit is one nano, which divides every amount");
                write!(f, "{}{suffix}", nano / unit)
            }
        }
    }
}

/// The unit of a suffix: a count of nanos, or a power of ten beyond them.
enum Unit {
    Nanos(i128),
    PowerOfTen(i32),
}

fn unit(suffix: &str) -> Result<(Unit, Style), ParseError> {
    if let Some((_, nanos)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Unit::Nanos(*nanos), Style::Decimal));
    }
    if let Some((_, nanos)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Unit::Nanos(*nanos), Style::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseError);
    }
    let exponent: i32 = exponent.parse().map_err(|_| ParseError)?;
    Ok((Unit::PowerOfTen(exponent), Style::Exponent))
}

/// `whole.fraction` times the unit, in nanos: rounded up, held at the bound.
fn scale(whole: &str, fraction: &str, unit: Unit) -> i128 {
    // With the decimal point moved, an exponent is a unit of one nano, one, or nothing.
    let (nanos, point) = match unit {
        Unit::Nanos(nanos) => (nanos, 0),
        Unit::PowerOfTen(exponent) => (NANO, exponent),
    };
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|byte| byte - b'0').collect();
    let leading = digits.iter().take_while(|digit| **digit == 0).count();
    let mut power = point as i64 - fraction.len() as i64;
    let mut digits = &digits[leading..];
    while let [rest @ .., 0] = digits {
        digits = rest;
        power += 1;
    }
    if digits.is_empty() {
        return 0;
    }
    // digits x 10^power x nanos. Anything of more than 20 whole digits is beyond 2^63.
    if digits.len() as i64 + power > 29 {
        return MAX;
    }
    let kept = digits.len().min(DIGITS_MAX.min(27));
    let lost = digits.len() - kept;
    power += lost as i64;
    let mut value = digits[..kept].iter().fold(0_i128, |value, digit| value * 10 + i128::from(*digit));
    if lost > 0 {
        // The remainder is not zero, as trailing zeros are gone: round up.
        value += 1;
    }
    let mut numerator = nanos;
    for _ in 0..power.max(0) {
        numerator = numerator.saturating_mul(10);
    }
    let mut denominator = 1_i128;
    for _ in 0..(-power).clamp(0, 38) {
        denominator = denominator.saturating_mul(10);
    }
    // Common factors go first, so that the product fits wherever the result does.
    let common = gcd(numerator, denominator);
    let (numerator, denominator) = (numerator / common, denominator / common);
    match value.checked_mul(numerator) {
        Some(product) => ceil(product, denominator).min(MAX),
        None => (value / denominator).saturating_add(1).saturating_mul(numerator).min(MAX),
    }
}

fn gcd(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Divides, rounding away from nothing for positive amounts: a request is never understated.
fn ceil(value: i128, unit: i128) -> i128 {
    let quotient = value / unit;
    if value % unit > 0 { quotient + 1 } else { quotient }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap_or_else(|_| panic!("{text}")).to_string()
    }

    #[test]
    fn a_quantity_prints_in_canonical_form() {
        for (text, expect) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+1", "1"),
            ("-1500m", "-1500m"),
            ("100m", "100m"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1000000", "1M"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1023", "1023"),
            ("2e3", "2e3"),
            ("1e4", "10e3"),
            ("1.5e3", "1500"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            ("12345678901234567890123", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
            ("0.0000000001", "1n"),
            ("100u", "100u"),
        ] {
            assert_eq!(canonical(text), expect, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "-", ".", "1..2", "1.2.3", "1K", "1ki", "Mi", "1 Mi", "e3", "1e", "1e+", "--1", "ü", "1é",
            "0x1",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_compare_by_value_and_round_up() {
        let parse = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(parse("1000m"), parse("1"));
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("100.5m").millis(), 101);
        assert_eq!(parse("1.1").units(), 2);
        assert_eq!(parse("1Gi").plus(parse("512Mi")).to_string(), "1536Mi");
        assert_eq!(parse("1").minus(parse("1500m")).to_string(), "-500m");
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn printing_and_reading_again_changes_nothing(text in "[+-]?[0-9]{0,30}(\\.[0-9]{0,30})?(n|u|m||k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[+-]?[0-9]{1,3})") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let printed = quantity.to_string();
                let again: Quantity = printed.parse().unwrap();
                // A binary amount rounds up to whole units when it is printed.
                prop_assert!(again == quantity || quantity.style == Style::Binary);
                prop_assert_eq!(again.to_string(), printed);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = text.parse::<Quantity>();
        }
    }
}
