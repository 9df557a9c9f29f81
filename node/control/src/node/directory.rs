//! What a data directory is, and what may be asked of it.
//!
//! The shell looks ([`Found`]), [`up`] and [`join`] say what happens ([`Step`]) or why nothing does ([`Refusal`]), and the
//! shell performs. The idea of it: a key lives as long as one membership. What belongs to the past is set aside whole,
//! store, key and all, so that neither is ever seen again under another roof; and a store of which nobody can say
//! where it belongs is left to the operator.

/// What lies in a data directory, as far as it decides anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its path, for the words.
    pub dir: String,
    /// To which cluster it says it belongs.
    pub membership: Option<Membership>,
    /// A join was begun here and may have been granted.
    pub joining: bool,
    /// A node's key, or what is left of one.
    pub identity: bool,
    /// A member's certificate.
    pub certificate: bool,
    /// A cluster's authorities.
    pub authority: bool,
    /// The id, the log or a snapshot of a store.
    pub store: bool,
    /// Pods, images, logs, addresses: what a node makes while it runs.
    pub traces: bool,
    /// The first thing that this program never made.
    pub strange: Option<String>,
}

/// Where a directory belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The cluster's name.
    pub cluster: String,
    /// By which people tell clusters apart.
    pub fingerprint: String,
    /// The node's name in it.
    pub name: String,
    /// How far it is.
    pub stage: Stage,
}

/// How far a membership is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The founding was cut off: nobody has ever joined, and no API has ever answered.
    Founding,
    /// A member, as far as it knows.
    Member,
    /// It has left, and was cut off in setting its past aside.
    Left,
}

/// What `skein up` is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `--new-cluster`.
    pub new_cluster: bool,
    /// `--name`, if it was given.
    pub name: Option<&'a str>,
    /// `--cluster`, if it was given.
    pub cluster: Option<&'a str>,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<Then> {
    /// What is moved away first; from then on the directory is an empty one.
    pub set_aside: Option<Past>,
    /// What comes then.
    pub then: Then,
}

/// What does not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// A membership that has ended.
    Membership,
    /// A founding that was cut off.
    Founding,
    /// An unanswered join of another cluster.
    Joining,
    /// A key that may have been a member somewhere.
    Identity,
    /// What a node has left here that nobody is any more.
    Traces,
}

/// What comes of `skein up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Up {
    /// The member starts.
    Run,
    /// A cluster is founded.
    Found {
        /// Unless one answers on this network.
        look_around: bool,
    },
}

/// As whom a machine joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// With a key that nobody has seen yet.
    Newcomer,
    /// With the key and the request of before, so that what was granted then is granted again.
    Again,
    /// A member that lost its certificate, and nothing else.
    Member,
}

/// Why nothing happens. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else's files.
    #[error(
        "{dir} holds {name:?}, which skein did not make; give an empty directory with --data-dir, or move that away"
    )]
    Strange {
        /// The directory.
        dir: String,
        /// What was found first.
        name: String,
    },
    /// `join` of a member.
    #[error(
        "this machine already belongs to cluster {cluster:?} ({fingerprint}); start it with: skein up; to join another cluster, let it leave first (skein leave), or give another --data-dir"
    )]
    IsMember {
        /// Of which cluster.
        cluster: String,
        /// The same.
        fingerprint: String,
    },
    /// `up --new-cluster` of a member.
    #[error(
        "{dir} already belongs to cluster {cluster:?} ({fingerprint}), so no cluster is founded there; start its node with: skein up; for another cluster let it leave first (skein leave), or give another --data-dir"
    )]
    NoNewCluster {
        /// The directory.
        dir: String,
        /// To which cluster it belongs.
        cluster: String,
        /// The same.
        fingerprint: String,
    },
    /// `restore` of a member.
    #[error(
        "{dir} belongs to cluster {cluster:?} ({fingerprint}), and a backup is restored onto a machine that belongs to none; let it leave first (skein leave), or give another --data-dir"
    )]
    NoRestore {
        /// The directory.
        dir: String,
        /// To which cluster it belongs.
        cluster: String,
        /// The same.
        fingerprint: String,
    },
    /// `up --name` or `--cluster` with another name than the one that counts.
    #[error(
        "the {what} is called {is:?}, not {asked:?}, and keeps its name; start it without {option}, or let this node leave (skein leave) and begin anew"
    )]
    OtherName {
        /// `node` or `cluster`.
        what: &'static str,
        /// What it is called.
        is: String,
        /// What was given.
        asked: String,
        /// By which option.
        option: &'static str,
    },
    /// `up` of a member without its certificate.
    #[error(
        "{dir} has lost this node's certificate (member.json); it gets a new one by a token of cluster {cluster:?}: skein token create there, skein join TOKEN here"
    )]
    NoCertificate {
        /// The directory.
        dir: String,
        /// The cluster.
        cluster: String,
    },
    /// `up` after a join without an answer.
    #[error(
        "a join of this machine was not answered, and may have been granted; repeat it with: skein join TOKEN (the same token, or a new one), or move {dir} away"
    )]
    Joining {
        /// The directory.
        dir: String,
    },
    /// Parts of a membership, and nothing that says of which cluster.
    #[error(
        "{dir} holds {what}, and nothing that says to which cluster it belongs (cluster.json); put that file back if it was lost, or move {dir} away and begin anew"
    )]
    Homeless {
        /// The directory.
        dir: String,
        /// What it holds.
        what: &'static str,
    },
}

/// What comes of `skein up`.
pub fn up(found: &Found, asked: Asked<'_>) -> Result<Step<Up>, Refusal> {
    if let Some(member) = found.member() {
        runs(found, member, asked)?;
        return Ok(Step { set_aside: None, then: Up::Run });
    }
    let set_aside = past(found)?;
    if found.joining && found.membership.is_none() {
        return Err(Refusal::Joining { dir: found.dir.clone() });
    }
    Ok(Step { set_aside, then: Up::Found { look_around: !asked.new_cluster } })
}

/// What comes of `skein join`. `own_cluster`: whether the token is of the cluster that this directory belongs to, or
/// asked to join.
pub fn join(found: &Found, own_cluster: bool) -> Result<Step<As>, Refusal> {
    if let Some(Membership { cluster, fingerprint, .. }) = found.member() {
        return match own_cluster && !found.certificate {
            true => Ok(Step { set_aside: None, then: As::Member }),
            false => Err(Refusal::IsMember { cluster: cluster.clone(), fingerprint: fingerprint.clone() }),
        };
    }
    let set_aside = past(found)?;
    Ok(match set_aside {
        Some(Past::Joining) if own_cluster => Step { set_aside: None, then: As::Again },
        set_aside => Step { set_aside, then: As::Newcomer },
    })
}

/// What is set aside first where a backup is restored: the machine is to be a bare one.
pub fn restore(found: &Found) -> Result<Option<Past>, Refusal> {
    if let Some(Membership { cluster, fingerprint, .. }) = found.member() {
        let (dir, cluster, fingerprint) = (found.dir.clone(), cluster.clone(), fingerprint.clone());
        return Err(Refusal::NoRestore { dir, cluster, fingerprint });
    }
    let set_aside = past(found)?;
    match set_aside {
        Some(Past::Joining) => Err(Refusal::Joining { dir: found.dir.clone() }),
        set_aside => Ok(set_aside),
    }
}

/// Whether a member may start as it is asked to.
fn runs(found: &Found, member: &Membership, asked: Asked<'_>) -> Result<(), Refusal> {
    let Membership { cluster, fingerprint, name, .. } = member;
    if asked.new_cluster {
        let (dir, cluster, fingerprint) = (found.dir.clone(), cluster.clone(), fingerprint.clone());
        return Err(Refusal::NoNewCluster { dir, cluster, fingerprint });
    }
    for (what, is, asked, option) in
        [("node", name, asked.name, "--name"), ("cluster", cluster, asked.cluster, "--cluster")]
    {
        if let Some(asked) = asked.filter(|asked| *asked != is) {
            let (is, asked) = (is.clone(), asked.to_owned());
            return Err(Refusal::OtherName { what, is, asked, option });
        }
    }
    match found.certificate {
        true => Ok(()),
        false => Err(Refusal::NoCertificate { dir: found.dir.clone(), cluster: cluster.clone() }),
    }
}

/// What there is to set aside where nobody is a member.
fn past(found: &Found) -> Result<Option<Past>, Refusal> {
    if let Some(name) = found.strange.clone() {
        return Err(Refusal::Strange { dir: found.dir.clone(), name });
    }
    match &found.membership {
        Some(membership) if membership.stage == Stage::Left => return Ok(Some(Past::Membership)),
        Some(_) => return Ok(Some(Past::Founding)),
        None if found.joining => return Ok(Some(Past::Joining)),
        None => {}
    }
    let homeless = [
        (found.store, "a store"),
        (found.authority, "a cluster's authorities"),
        (found.certificate, "a member's certificate"),
    ];
    match homeless.into_iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(Refusal::Homeless { dir: found.dir.clone(), what }),
        None if found.identity => Ok(Some(Past::Identity)),
        None => Ok(found.traces.then_some(Past::Traces)),
    }
}

impl Found {
    fn member(&self) -> Option<&Membership> {
        self.membership.as_ref().filter(|membership| membership.stage == Stage::Member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that can be asked, in the order of the lists below.
    const WISHES: [(&str, Wish); 8] = [
        ("up", Wish::Up(Asked { new_cluster: false, name: None, cluster: None })),
        ("up --name own", Wish::Up(Asked { new_cluster: false, name: Some("pi"), cluster: Some("home") })),
        ("up --name other", Wish::Up(Asked { new_cluster: false, name: Some("other"), cluster: None })),
        ("up --cluster other", Wish::Up(Asked { new_cluster: false, name: None, cluster: Some("other") })),
        ("up --new-cluster", Wish::Up(Asked { new_cluster: true, name: None, cluster: None })),
        ("join, own cluster", Wish::Join { own_cluster: true }),
        ("join, another", Wish::Join { own_cluster: false }),
        ("restore", Wish::Restore),
    ];

    #[derive(Clone, Copy)]
    enum Wish {
        Up(Asked<'static>),
        Join { own_cluster: bool },
        Restore,
    }

    fn belongs(stage: Stage) -> Found {
        let membership =
            Membership { cluster: "home".into(), fingerprint: "ab-cd".into(), name: "pi".into(), stage };
        Found { membership: Some(membership), certificate: true, ..with_store() }
    }

    fn with_store() -> Found {
        Found { identity: true, store: true, traces: true, ..empty() }
    }

    fn empty() -> Found {
        Found { dir: "/data".into(), ..Found::default() }
    }

    fn decided(found: &Found, wish: Wish) -> Result<Step<&'static str>, Refusal> {
        Ok(match wish {
            Wish::Up(asked) => {
                let Step { set_aside, then } = up(found, asked)?;
                let then = match then {
                    Up::Run => "run",
                    Up::Found { look_around: true } => "look, found",
                    Up::Found { look_around: false } => "found",
                };
                Step { set_aside, then }
            }
            Wish::Join { own_cluster } => {
                let Step { set_aside, then } = join(found, own_cluster)?;
                let then = match then {
                    As::Newcomer => "join",
                    As::Again => "join again",
                    As::Member => "join as member",
                };
                Step { set_aside, then }
            }
            Wish::Restore => Step { set_aside: restore(found)?, then: "restore" },
        })
    }

    fn said(found: &Found, wish: Wish) -> String {
        match decided(found, wish) {
            Ok(Step { set_aside: Some(past), then }) => format!("{past:?} aside, {then}"),
            Ok(Step { set_aside: None, then }) => then.to_owned(),
            Err(refusal) => {
                let name = format!("{refusal:?}");
                format!("no: {}", name.split([' ', '{']).next().unwrap_or_default())
            }
        }
    }

    fn check(what: &str, found: &Found, expect: [&str; 8]) {
        for ((wish, outcome), expect) in
            WISHES.map(|(name, wish)| (name, said(found, wish))).iter().zip(expect)
        {
            assert_eq!(outcome, expect, "{what}: {wish}");
        }
    }

    const AFRESH: [&str; 8] =
        ["look, found", "look, found", "look, found", "look, found", "found", "join", "join", "restore"];

    fn after(past: &str) -> [String; 8] {
        AFRESH.map(|then| format!("{past} aside, {then}"))
    }

    fn check_after(what: &str, found: &Found, past: &str) {
        check(what, found, after(past).each_ref().map(String::as_str));
    }

    #[test]
    fn an_empty_directory_may_become_anything() {
        check("empty", &empty(), AFRESH);
    }

    #[test]
    fn a_member_starts_under_its_name_and_does_nothing_else() {
        let (name, member) = ("no: OtherName", "no: IsMember");
        let expect = ["run", "run", name, name, "no: NoNewCluster", member, member, "no: NoRestore"];
        check("a member", &belongs(Stage::Member), expect);
        let lost_store = Found { store: false, ..belongs(Stage::Member) };
        check("a member whose store was lost", &lost_store, expect);
        let voter = Found { authority: true, ..belongs(Stage::Member) };
        check("a voter", &voter, expect);
        // Somebody keeps notes beside it: no reason not to start.
        let strange = Found { strange: Some("notes.txt".into()), ..belongs(Stage::Member) };
        check("a member beside other files", &strange, expect);
        // It was let in, and the machine lost its power before that was noted.
        let joined = Found { joining: true, ..belongs(Stage::Member) };
        check("a member that has just joined", &joined, expect);
    }

    #[test]
    fn a_member_without_its_certificate_gets_one_by_a_token_of_its_cluster() {
        let lost = Found { certificate: false, ..belongs(Stage::Member) };
        let (no, name) = ("no: NoCertificate", "no: OtherName");
        check(
            "no certificate",
            &lost,
            [no, no, name, name, "no: NoNewCluster", "join as member", "no: IsMember", "no: NoRestore"],
        );
    }

    #[test]
    fn what_has_left_or_was_never_founded_is_set_aside_whole() {
        check_after("left", &belongs(Stage::Left), "Membership");
        check_after("a founding that was cut off", &belongs(Stage::Founding), "Founding");
        let early = Found { store: false, certificate: false, ..belongs(Stage::Founding) };
        check_after("a founding that was cut off early", &early, "Founding");
    }

    #[test]
    fn a_join_without_an_answer_is_repeated_with_the_same_key_for_the_same_cluster_only() {
        let no = "no: Joining";
        let expect = [no, no, no, no, no, "join again", "Joining aside, join", no];
        let joining = Found { joining: true, identity: true, ..empty() };
        check("joining", &joining, expect);
        let half = Found { joining: true, certificate: true, ..with_store() };
        check("joining, cut off after the answer", &half, expect);
    }

    #[test]
    fn a_key_that_may_have_been_a_member_elsewhere_is_never_used_again() {
        check_after("a key alone", &Found { identity: true, ..empty() }, "Identity");
        check_after("a key and pods", &Found { identity: true, traces: true, ..empty() }, "Identity");
        check_after("images of before", &Found { traces: true, ..empty() }, "Traces");
    }

    #[test]
    fn parts_of_a_membership_without_its_cluster_are_left_to_the_operator() {
        for (what, found) in [
            ("a store", with_store()),
            ("a store without a key", Found { identity: false, ..with_store() }),
            ("authorities", Found { authority: true, ..empty() }),
            ("a certificate", Found { certificate: true, identity: true, ..empty() }),
        ] {
            check(what, &found, ["no: Homeless"; 8]);
        }
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_touched() {
        for found in [empty(), with_store(), belongs(Stage::Left), Found { joining: true, ..empty() }] {
            check("strange", &Found { strange: Some("home".into()), ..found }, ["no: Strange"; 8]);
        }
    }

    #[test]
    fn each_refusal_is_one_sentence_that_says_what_to_do() {
        let joining = Found { joining: true, ..empty() };
        let lost = Found { certificate: false, ..belongs(Stage::Member) };
        let strange = Found { strange: Some("x".into()), ..empty() };
        for found in [belongs(Stage::Member), lost, joining, strange, with_store()] {
            for (_, wish) in WISHES {
                let Err(refusal) = decided(&found, wish) else { continue };
                let text = refusal.to_string();
                assert!(text.contains("; ") && !text.contains(". ") && !text.ends_with('.'), "{text}");
            }
        }
    }
}
