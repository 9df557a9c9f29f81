//! Chance that is given in: the same seed draws the same uids and suffixes.

use skein_api::pod::SAFE_ALPHABET;

/// A seed from which everything drawn in one round of planning follows.
///
/// What is drawn for an object depends on the seed and on the object only, never on the order in which
/// objects are planned: so planning all and planning what changed draw alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance(pub u128);

impl Chance {
    /// The draws that belong to `subject`, for instance an owner's uid and an ordinal.
    pub fn of(&self, subject: &str) -> Draws {
        // FNV-1a over the subject, twice with different starts, mixed with each half of the seed.
        let hash = |start: u64| {
            subject
                .bytes()
                .fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
        };
        Draws {
            first: hash(0xcbf2_9ce4_8422_2325) ^ self.0 as u64,
            second: hash(0x9ae1_6a3b_2f90_404f) ^ (self.0 >> 64) as u64,
        }
    }
}

/// An endless row of draws.
#[derive(Clone, Debug)]
pub struct Draws {
    first: u64,
    second: u64,
}

impl Draws {
    /// A fresh uid in the form of a random (version 4) UUID.
    pub fn uid(&mut self) -> String {
        let bits = (u128::from(self.next(0)) << 64) | u128::from(self.next(1));
        // Version 4, variant 1 (RFC 9562 §5.4).
        let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// Five letters for a generated name.
    pub fn suffix(&mut self) -> String {
        let mut bits = self.next(0);
        let mut letters = String::with_capacity(5);
        for _ in 0..5 {
            letters.push(SAFE_ALPHABET[(bits % SAFE_ALPHABET.len() as u64) as usize] as char);
            bits /= SAFE_ALPHABET.len() as u64;
        }
        letters
    }

    /// Any number.
    #[cfg(test)]
    pub(crate) fn number(&mut self) -> u64 {
        self.next(0)
    }

    /// splitmix64: one step of the half that is asked for, salted with the other.
    fn next(&mut self, half: u8) -> u64 {
        let (state, salt) =
            if half == 0 { (&mut self.first, self.second) } else { (&mut self.second, self.first) };
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state ^ salt.rotate_left(32);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_and_subject_draw_the_same() {
        let (mut one, mut other) = (Chance(7).of("a"), Chance(7).of("a"));
        assert_eq!((one.uid(), one.suffix()), (other.uid(), other.suffix()));
    }

    #[test]
    fn a_uid_has_the_form_of_a_random_uuid() {
        let uid = Chance(1).of("x").uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn ten_thousand_draws_repeat_no_uid() {
        let uids: BTreeSet<String> =
            (0..10_000).map(|n| Chance(n / 100).of(&(n % 100).to_string()).uid()).collect();
        assert_eq!(uids.len(), 10_000);
    }
}
