//! `skein backup` and `skein ca recovery-key`, on the side of the daemon.

use age::secrecy::ExposeSecret as _;
use futures::StreamExt as _;
use http::StatusCode;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use skein_apiserver::{Body, BodyError, body_from};
use skein_raft_store::Options;
use std::time::Duration;
use tracing::info;

use super::{Admin, Reply, unavailable};
use crate::authority::{self, Authority};
use crate::backup::{self, Authorities, Header, Recipient};
use crate::clock;
use crate::wire::{Ask, Sealed};

/// How long the newest state may take to be known.
const READ_MAX: Duration = Duration::from_secs(5);
/// The authorities and the state may be of two moments between which they were made anew.
const TRIES: usize = 3;
const NOT_A_HOLDER: &str = "this node does not hold the cluster's authorities, so it cannot encrypt them with a passphrase; \
                            make the backup on one that votes, or for the recovery key (without --passphrase)";

impl Admin {
    /// A new recovery key: its public half for the map, its secret one for whoever asked, and for nobody else.
    pub(super) async fn make_recovery_key(&self) -> Reply {
        let (secret, recipient) = Recipient::draw(clock::now_ms());
        let answer = self.store.propose(vec![recipient.to_op()], Options::default()).await;
        answer.map_err(|error| unavailable(error.to_string()))?;
        info!(recipient = recipient.recipient, "backups are made for another recovery key from now on");
        Ok(json!({ "secret": secret.expose_secret(), "recipient": recipient.recipient }))
    }

    /// Everything that the cluster knows, and its authorities, in frames.
    pub(super) async fn backup(&self, sealed: bool) -> Result<Body, (StatusCode, String)> {
        for _ in 0..TRIES {
            self.store.read_index(READ_MAX).await.map_err(|error| {
                unavailable(format!("no majority of the voters answers, so nobody knows the newest state ({error}); see: skein status"))
            })?;
            let (edition, authorities) = match sealed {
                true => {
                    let asked = self.authority.ask(&Ask::SealedAuthorities, Authority::answer_sealed).await;
                    let Sealed { fingerprint, bytes } = asked.map_err(unavailable)?;
                    (fingerprint, Authorities::sealed(&bytes))
                }
                false => {
                    let held =
                        self.authority.held().ok_or((StatusCode::CONFLICT, NOT_A_HOLDER.to_owned()))?;
                    (held.fingerprint(), Authorities::plain(&held.to_bytes()))
                }
            };
            let state = self.store.state().for_followers();
            if authority::trust_of(&state).is_some_and(|(_, trust)| trust.current.0 != edition) {
                // They are being made anew at this moment, and what belongs together was not seen together.
                continue;
            }
            let mut members: Vec<String> =
                self.members.present().into_values().map(|record| record.name).collect();
            members.sort_unstable();
            let header = Header {
                format: backup::FORMAT,
                cluster: self.membership.public.cluster.name.clone(),
                tag: self.membership.tag(),
                revision: state.revision(),
                objects: state.len(),
                taken_ms: clock::now_ms(),
                node: self.membership.name.clone(),
                members,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                authorities,
                recipient: Recipient::of(&state).filter(|_| sealed),
            };
            let frames = backup::frames(&header, state).map(|frame| Ok::<_, BodyError>(Frame::data(frame)));
            return Ok(body_from(StreamBody::new(frames)));
        }
        Err(unavailable("the authorities are being made anew; try again in a minute".to_owned()))
    }
}
