//! What each end of a connection says first.
//!
//! `version | class | instance u32`, then items: `kind | length | so many bytes`. Unknown kinds are skipped, so a later
//! version only adds some.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf as _, BufMut as _};

use super::Class;
use crate::address_book::plain;
use crate::incarnation::Tag;

const VERSION: u8 = 1;
/// Longer than this version's hello, so that a later one may say more.
pub(super) const BYTES_MAX: usize = 256;

const SEEN_AS: u8 = 1;
const TAG: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// What the connection is for, if the speaker dialled.
    pub(super) class: Option<Class>,
    /// Which process speaks.
    pub(super) instance: u32,
    /// Where the other end is seen from here.
    pub(super) seen_as: Option<SocketAddr>,
    /// Where the speaker belongs; builds that knew of no incarnations say nothing.
    pub(super) tag: Option<Tag>,
}

impl Hello {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let class = match self.class {
            None => 0,
            Some(Class::Prompt) => 1,
            Some(Class::Bulk) => 2,
        };
        let mut bytes = vec![VERSION, class];
        bytes.put_u32(self.instance);
        if let Some(at) = self.seen_as {
            let ip = match at.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            put(&mut bytes, SEEN_AS, &[&ip[..], &at.port().to_be_bytes()].concat());
        }
        if let Some(tag) = self.tag {
            put(&mut bytes, TAG, &tag.to_bytes());
        }
        bytes
    }

    /// Later versions only append, so the version itself needs no look. Items after one that is cut off are lost.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Hello> {
        let _version = bytes.try_get_u8().ok()?;
        let class = match bytes.try_get_u8().ok()? {
            1 => Some(Class::Prompt),
            2 => Some(Class::Bulk),
            _ => None,
        };
        let instance = bytes.try_get_u32().ok()?;
        let mut hello = Hello { class, instance, seen_as: None, tag: None };
        while let [kind, length, rest @ ..] = bytes {
            let Some((said, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
            match *kind {
                SEEN_AS => hello.seen_as = address(said),
                TAG => hello.tag = said.try_into().ok().map(Tag::from_bytes),
                _ => {}
            }
            bytes = rest;
        }
        Some(hello)
    }
}

fn put(bytes: &mut Vec<u8>, kind: u8, said: &[u8]) {
    bytes.put_u8(kind);
    bytes.put_u8(u8::try_from(said.len()).expect("our own items are short"));
    bytes.put_slice(said);
}

fn address(mut said: &[u8]) -> Option<SocketAddr> {
    let ip: IpAddr = match said.len() {
        6 => said.get_u32().to_be_bytes().into(),
        18 => said.get_u128().to_be_bytes().into(),
        _ => return None,
    };
    Some(plain(SocketAddr::new(ip, said.get_u16())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::loopback;

    #[test]
    fn a_hello_is_read_as_it_was_said_whatever_else_is() {
        for at in [None, Some("192.0.2.7:7946"), Some("[2001:db8::7]:1")] {
            for class in [None, Some(Class::Prompt), Some(Class::Bulk)] {
                let seen_as = at.map(|at| at.parse().unwrap());
                let hello = Hello { class, instance: 7 << 24, seen_as, tag: Some(loopback::tag(1, 2)) };
                let mut bytes = hello.to_bytes();
                assert!(bytes.len() < BYTES_MAX);
                bytes.splice(6..6, [200, 3, 1, 2, 3]);
                bytes.extend([201, 0]);
                assert_eq!(Hello::parse(&bytes), Some(hello));
            }
        }
    }

    #[test]
    fn a_hello_that_was_cut_off_says_what_came_before() {
        let hello = Hello { class: None, instance: 9, seen_as: None, tag: Some(loopback::tag(1, 2)) };
        let bytes = hello.to_bytes();
        for cut in 0..bytes.len() {
            let heard = Hello::parse(&bytes[..cut]);
            let expect = (cut >= 6).then_some(Hello { tag: None, ..hello });
            assert_eq!(heard, expect, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_hello_is_read_beyond_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..BYTES_MAX)) {
            let _ = Hello::parse(&bytes);
        }
    }
}
