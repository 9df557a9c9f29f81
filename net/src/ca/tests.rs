//! What each certificate says, how long it is good, and what hostile input gets.

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use x509_parser::extensions::GeneralName;

use super::certificate::parse_whole;
use super::*;
use crate::identity::Identity;
use crate::loopback::{HOUR, founded, start};
use crate::tls::Standing;

fn unix(moment: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(since_epoch(moment))
}

fn check(ca: &ClusterCa, chain: &Chain, at: SystemTime) -> Result<NodeId, rustls::Error> {
    ca.public().members.check_member(chain.leaf(), &chain.certificates()[1..], unix(at))
}

fn request() -> (Identity, Vec<u8>) {
    let identity = Identity::ephemeral().expect("a key");
    let csr = identity.csr().expect("a request").to_vec();
    (identity, csr)
}

#[test]
fn a_member_certificate_says_the_node_id_and_lives_a_day() {
    let ca = founded();
    let (identity, csr) = request();
    let chain = ca.issue_member(&csr, start()).expect("issued");
    assert_eq!(node_of(chain.leaf()), Some(identity.node()));
    assert_eq!(check(&ca, &chain, start()), Ok(identity.node()));
    assert!(check(&ca, &chain, start() - BACKDATED).is_ok(), "clocks may be ten minutes behind");
    assert!(check(&ca, &chain, start() - BACKDATED - HOUR).is_err());
    assert!(check(&ca, &chain, start() + MEMBER_LIFE).is_ok());
    assert!(check(&ca, &chain, start() + MEMBER_LIFE + HOUR).is_err());
    let renew_at = chain.validity().renew_at();
    assert!(renew_at > start() + 11 * HOUR && renew_at < start() + 12 * HOUR, "at half life");
}

#[test]
fn the_template_ignores_what_a_hostile_request_asks_for() {
    let ca = founded();
    let (victim, _) = request();
    let key = identity::generate_key().expect("a key");
    let mut wishes = CertificateParams::new(vec![tls::server_name(victim.node())]).expect("names");
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    wishes.distinguished_name.push(DnType::CommonName, victim.node().to_string());
    wishes.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let csr = wishes.serialize_request(&key).expect("a request");

    let chain = ca.issue_member(csr.der(), start()).expect("issued, on our terms");
    let node = NodeId::of_public_key(&key.subject_public_key_info());
    assert_eq!(check(&ca, &chain, start()), Ok(node));
    let parsed = parse_whole(chain.leaf()).expect("a certificate");
    assert!(!parsed.is_ca());
    assert!(!parsed.key_usage().expect("valid").expect("present").value.key_cert_sign());
    let names = &parsed.subject_alternative_name().expect("valid").expect("present").value.general_names;
    assert_eq!(*names, [GeneralName::DNSName(&tls::server_name(node))]);
    let subject = client_subject(chain.leaf()).expect("a subject");
    assert_eq!((subject.user, subject.groups), (node.to_string(), vec![]));
}

#[test]
fn a_member_cannot_vouch_for_others() {
    let ca = founded();
    let key = identity::generate_key().expect("a key");
    let csr = identity::request_for(&key, "member").expect("a request");
    let chain = ca.issue_member(&csr, start()).expect("issued");
    let member = Issuer::from_ca_cert_der(chain.leaf(), &key).expect("rcgen does not mind");
    let forged_key = identity::generate_key().expect("a key");
    let node = NodeId::of_public_key(&forged_key.subject_public_key_info());
    let mut params = template(&node.to_string(), start(), MEMBER_LIFE).expect("params");
    params.subject_alt_names = vec![dns_name(&tls::server_name(node)).expect("a name")];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let forged = params.signed_by(&forged_key, &member).expect("signed");
    let authorities = chain.certificates();
    assert!(ca.public().members.check_member(forged.der(), authorities, unix(start())).is_err());
}

#[test]
fn a_request_with_a_damaged_signature_is_refused() {
    let ca = founded();
    let (_, mut csr) = request();
    *csr.last_mut().expect("not empty") ^= 1;
    assert!(matches!(ca.issue_member(&csr, start()), Err(Error::RequestSignature)));
    let (_, mut csr) = request();
    csr.push(0);
    assert!(matches!(ca.issue_member(&csr, start()), Err(Error::MalformedRequest(_))));
    assert!(matches!(ca.issue_member(&[0x30; CSR_BYTES_MAX + 1], start()), Err(Error::MalformedRequest(_))));
}

#[test]
fn a_request_for_another_kind_of_key_is_refused() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("a request");
    assert!(matches!(request_node(csr.der()), Err(Error::MalformedRequest(_))));
}

#[test]
fn a_certificate_of_another_cluster_is_worth_nothing() {
    let (ours, theirs) = (founded(), founded());
    let (_, csr) = request();
    let chain = theirs.issue_member(&csr, start()).expect("issued");
    assert!(check(&ours, &chain, start()).is_err());
    assert_ne!(ours.cluster().id, theirs.cluster().id);
}

#[test]
fn an_api_certificate_has_the_names_asked_for_and_is_no_member_certificate() {
    let ca = founded();
    let (_, csr) = new_request("api").expect("a key");
    let addresses = vec!["10.0.0.7".parse().expect("an address"), "fd00::7".parse().expect("an address")];
    let names = ApiNames { addresses, names: vec!["kitchen".into()] };
    let chain = ca.issue_api_server(&csr, &names, start()).expect("issued");
    let parsed = ParsedCertificate::try_from(chain.leaf()).expect("a certificate");
    for name in ["10.0.0.7", "fd00::7", "kitchen", "home.skein"] {
        let name = ServerName::try_from(name).expect("a name");
        assert!(verify_server_name(&parsed, &name).is_ok(), "{name:?}");
    }
    let other = ServerName::try_from("10.0.0.8").expect("a name");
    assert!(verify_server_name(&parsed, &other).is_err());
    let roots = ca.public().members.store();
    assert!(verify_chain(&roots, &parsed, &chain.certificates()[1..], unix(start())).is_ok());
    assert!(check(&ca, &chain, start()).is_err(), "not named after its key");
    for (name, can) in
        [("pi", true), ("7up", true), ("1a", true), ("123", false), ("7", false), ("a b", false)]
    {
        assert_eq!(crate::ca::is_host_name(name), can, "{name}");
    }
    let bad = ApiNames { addresses: vec![], names: vec!["no such name".into()] };
    assert!(matches!(ca.issue_api_server(&csr, &bad, start()), Err(Error::Name(_))));
}

#[test]
fn a_client_certificate_says_user_group_and_serial_and_comes_from_its_own_root() {
    let ca = founded();
    let client = ca.issue_client("ada", start()).expect("issued");
    let subject = client_subject(client.chain.leaf()).expect("a subject");
    assert_eq!(subject.user, "ada");
    assert_eq!(subject.groups, ["system:masters"]);
    assert_eq!(subject.serial, Some(client.serial));
    assert!(client.key_pem.contains("PRIVATE KEY"));
    assert!(check(&ca, &client.chain, start()).is_err(), "a user is no member");

    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        ca.public().clients.store().into(),
        tls::provider(),
    );
    let verifier = verifier.build().expect("a verifier");
    assert!(verifier.verify_client_cert(client.chain.leaf(), &[], unix(start())).is_ok());
    let (_, csr) = request();
    let member = ca.issue_member(&csr, start()).expect("issued");
    let authorities = &member.certificates()[1..];
    assert!(verifier.verify_client_cert(member.leaf(), authorities, unix(start())).is_err());
}

#[test]
fn a_member_renews_with_a_certificate_of_any_age_a_stranger_within_thirty_days() {
    let ca = founded();
    let (identity, csr) = request();
    let chain = ca.issue_member(&csr, start()).expect("issued");
    let old = chain.certificates();
    let renew = |standing, now| ca.renew_member(old, standing, &csr, now);

    let next = renew(Standing::Unknown, start() + 12 * HOUR).expect("in date");
    assert_ne!(next.leaf(), chain.leaf());
    assert_eq!(check(&ca, &next, start() + 30 * HOUR), Ok(identity.node()));
    assert!(renew(Standing::Unknown, start() + 30 * DAY).is_ok());
    let late = start() + 32 * DAY;
    assert!(matches!(renew(Standing::Unknown, late), Err(Error::NotRenewable { .. })));
    assert!(renew(Standing::Member, late).is_ok());
    assert!(matches!(renew(Standing::Removed, start()), Err(Error::Removed(_))));
    let (_, another) = request();
    let stolen = ca.renew_member(old, Standing::Member, &another, start());
    assert!(matches!(stolen, Err(Error::NotRenewable { .. })), "one's own key only");
    let foreign = founded().renew_member(old, Standing::Unknown, &csr, start());
    assert!(matches!(foreign, Err(Error::NotRenewable { .. })));
}

#[test]
fn a_renewed_edition_leaves_old_certificates_valid_and_none_is_signed_past_its_authoritys_end() {
    let ca = founded();
    let (_, csr) = request();
    let before = ca.issue_member(&csr, start()).expect("issued");
    let issuing = ca.issuing_validity();
    assert!(!issuing.is_due(start() + 44 * DAY) && issuing.is_due(start() + 46 * DAY));
    let last = ca.issue_member(&csr, start() + 90 * DAY - HOUR).expect("issued");
    assert!(last.validity().until <= start() + 90 * DAY);
    assert!(matches!(ca.issue_member(&csr, start() + 91 * DAY), Err(Error::AuthorityExpired)));
    let next = ca.renewed(start() + HOUR).expect("renewed");
    assert_eq!(next.public(), ca.public(), "the roots are the same");
    assert_ne!(next.fingerprint(), ca.fingerprint());
    assert!(check(&next, &before, start() + HOUR).is_ok());
    let after = next.issue_member(&csr, start() + 90 * DAY).expect("issued");
    assert!(check(&ca, &after, start() + 90 * DAY).is_ok());
}

#[test]
fn a_root_is_made_valid_for_longer_under_its_own_key_and_name() {
    let ca = founded();
    let half = start() + ROOT_LIFE / 2;
    let next = ca.renewed(half).expect("renewed");
    assert_ne!(next.public(), ca.public());
    assert_eq!(next.pin(), ca.pin(), "tokens go on being good");
    assert_eq!(next.root.name().expect("a name"), ca.root.name().expect("a name"));
    assert!(next.roots_validity().until > start() + ROOT_LIFE + ROOT_LIFE / 3);
    let (_, csr) = request();
    let chain = next.issue_member(&csr, half).expect("issued");
    assert!(check(&ca, &chain, half).is_ok() && check(&next, &chain, half).is_ok());
}

#[test]
fn what_a_clock_ahead_has_made_is_due_at_once_when_the_clock_is_right() {
    let ca = ClusterCa::create("home", start() + 3652 * DAY).expect("a cluster");
    assert!(ca.issuing_validity().is_due(start()) && ca.roots_validity().is_due(start()));
    let next = ca.renewed(start()).expect("renewed");
    assert!(!next.issuing_validity().is_due(start()) && !next.roots_validity().is_due(start()));
    assert_eq!(next.pin(), ca.pin());
}

#[test]
fn new_authorities_are_believed_by_who_knows_only_the_old_ones_while_those_vouch_for_them() {
    let old = founded();
    let new = ClusterCa::anew(old.cluster(), start() + DAY).expect("made anew");
    assert_eq!(new.cluster(), old.cluster());
    assert_ne!(new.pin(), old.pin());
    let (identity, csr) = request();
    let chain = new.issue_member(&csr, start() + DAY).expect("issued");
    let at = start() + DAY;
    assert_eq!(check(&new, &chain, at), Ok(identity.node()));
    assert!(check(&old, &chain, at).is_err(), "nobody has vouched for it");
    assert!(chain.is_under(&new.root.certificate) && !chain.is_under(&old.root.certificate));

    let cross = old.cross_sign(&new, start() + DAY).expect("signed");
    let chain = chain.vouched_by(cross);
    assert_eq!(check(&old, &chain, at), Ok(identity.node()));
    assert_eq!(check(&new, &chain, at), Ok(identity.node()));
    assert!(check(&founded(), &chain, at).is_err());
    let api = ApiNames { addresses: vec![], names: vec!["kitchen".into()] };
    let server = new.issue_api_server(&csr, &api, at).expect("issued");
    let server = server.vouched_by(old.cross_sign(&new, at).expect("signed"));
    let parsed = ParsedCertificate::try_from(server.leaf()).expect("a certificate");
    for ca in [&old, &new] {
        let roots = ca.public().members.store();
        assert!(verify_chain(&roots, &parsed, &server.certificates()[1..], unix(at)).is_ok());
    }
    let before = old.issue_member(&csr, start()).expect("issued");
    assert!(check(&new, &before, at).is_err(), "nothing is vouched for backwards");
}

#[test]
fn nobody_vouches_for_longer_than_a_year_and_than_it_lives_itself() {
    let old = founded();
    let at = start() + ROOT_LIFE - 100 * DAY;
    let new = ClusterCa::anew(old.cluster(), at).expect("made anew");
    let until = |now| Validity::of(&old.cross_sign(&new, now).expect("signed")).expect("dates").until;
    assert!(until(start()) < start() + 371 * DAY && until(start()) > start() + 365 * DAY);
    assert!(until(at) <= start() + ROOT_LIFE);
}

#[test]
fn stored_authorities_come_back_as_they_were_and_damage_is_noticed() {
    let ca = founded();
    let bytes = ca.to_bytes();
    let again = ClusterCa::from_bytes(&bytes).expect("whole");
    assert_eq!(again.public(), ca.public());
    let (_, csr) = request();
    let chain = again.issue_member(&csr, start()).expect("issued");
    assert!(check(&ca, &chain, start()).is_ok());
    for cut in 0..bytes.len() {
        assert!(ClusterCa::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let mut newer = bytes;
    newer[0] = 2;
    ClusterCa::from_bytes(&newer).expect_err("it says that keys of before follow");
    newer[0] = 3;
    let error = ClusterCa::from_bytes(&newer).expect_err("newer");
    assert!(error.to_string().contains("version 3"), "{error}");
}

#[test]
fn a_cluster_has_a_dns_label_for_a_name() {
    for name in ["", "Home", "-home", "home-", "a.b", "a b", &"a".repeat(64)] {
        assert!(matches!(ClusterCa::create(name, start()), Err(Error::ClusterName(_))), "{name:?}");
    }
}

#[test]
fn a_fingerprint_is_the_id_in_groups() {
    let id = ClusterId([0x1f; 16]);
    assert_eq!(id.fingerprint(), ["1f1f"; 8].join("-"));
}

#[test]
fn an_authority_may_be_made_when_the_clock_says_1970() {
    let ca = ClusterCa::create("home", UNIX_EPOCH).expect("a cluster");
    let (_, csr) = request();
    let chain = ca.issue_member(&csr, UNIX_EPOCH).expect("issued");
    assert!(check(&ca, &chain, UNIX_EPOCH + HOUR).is_ok());
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_the_parsers(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let certificate = CertificateDer::from(bytes.clone());
        let _ = request_node(&bytes);
        let _ = ClusterCa::from_bytes(&bytes);
        let _ = (node_of(&certificate), Pin::of(&certificate), Validity::of(&certificate));
        let _ = client_subject(&certificate);
        let _ = Chain::new(vec![certificate.clone()]);
        let _ = TrustBundle::new(vec![certificate]);
    }

    #[test]
    fn no_flipped_byte_panics_the_parsers(at in 0usize..2000, value in proptest::num::u8::ANY) {
        let ca = founded();
        let (_, mut csr) = request();
        let index = at % csr.len();
        csr[index] = value;
        let _ = ca.issue_member(&csr, start());
        let mut root = ca.root.certificate.to_vec();
        let index = at % root.len();
        root[index] = value;
        let root = CertificateDer::from(root);
        let _ = (client_subject(&root), Chain::new(vec![root.clone()]), TrustBundle::new(vec![root]));
    }
}

#[test]
fn a_data_key_lasts_as_long_as_its_root_and_what_it_sealed_opens_after_a_rotation() {
    let ca = founded();
    let renewed = ca.renewed(start() + HOUR).expect("renewed").following(&ca, |_| false);
    assert_eq!(renewed.data_keys(), [ca.data_key()]);
    let rotated = ClusterCa::anew(ca.cluster(), start() + HOUR).expect("made").following(&renewed, |_| false);
    assert_eq!(rotated.data_keys()[1..], [ca.data_key()]);
    assert_ne!(rotated.data_key(), ca.data_key());
    let stored = ClusterCa::from_bytes(&rotated.to_bytes()).expect("what was stored");
    assert_eq!(stored.data_keys(), rotated.data_keys());
    assert_eq!(ClusterCa::from_bytes(&ca.to_bytes()).expect("what was stored").data_keys(), [ca.data_key()]);

    // The oldest goes with the next rotation, unless something is still sealed by it.
    let again = |needed: bool| {
        let anew = ClusterCa::anew(ca.cluster(), start() + 2 * HOUR).expect("made");
        anew.following(&rotated, |id| needed && id == ca.data_key().id()).data_keys()
    };
    assert_eq!(again(true)[1..], [rotated.data_key(), ca.data_key()]);
    assert_eq!(again(false)[1..], [rotated.data_key()]);
    assert!(!format!("{:?}", ca.data_key()).contains(&format!("{:?}", ca.data_key().bytes())));
}
