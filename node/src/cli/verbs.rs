//! The verbs that ask the daemon and print its answer.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};

use skein_runtime::images::Images;

use super::Output;
use super::talk::{talk, talk_in_lines, talk_with};
use crate::daemon::Failure;
use crate::former::Former;
use crate::home::Home;

/// How long a daemon that has left may take to end.
const ENDING_MAX: Duration = Duration::from_secs(20);
/// Where certificates are listed.
pub(super) const CLIENTS: &str = "skein kubeconfig list";
/// What a table of 80 columns has room for; `-o json` has all of it. So much of a serial is enough to revoke it by.
const SERIAL_CHARS: usize = 16;
const DIGEST_CHARS: usize = "sha256:".len() + 12;
/// A day of a time like `2023-11-14T22:13:20Z`.
const DAY_CHARS: usize = 10;
/// Pieces in which an archive goes to the daemon.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn status(dir: &Path, output: Output) -> Result<(), Failure> {
    let status = talk(dir, Method::GET, "status", None)?;
    if output == Output::Name {
        return lines(
            status["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|node| format!("node/{}", text(&node["name"]))),
        );
    }
    if output != Output::Table {
        return print(&status, output);
    }
    // A cluster that was never recovered has but one.
    let incarnation = match status["incarnation"]["number"].as_u64() {
        Some(number @ 2..) => format!(", incarnation {number}"),
        _ => String::new(),
    };
    let quorum =
        if status["quorum"] == true { "yes" } else { "NO: writes wait until a majority of the voters is up" };
    let survived = status["failuresSurvived"].as_u64().unwrap_or(0);
    let mut out = vec![
        format!("cluster      {} ({}{incarnation})", text(&status["cluster"]), text(&status["fingerprint"])),
        format!("this node    {}", text(&status["node"])),
        format!("leader       {} (term {})", or(&status["leader"], "none"), status["term"]),
        format!("quorum       {quorum}"),
        format!("survives     {survived} more failure{}", if survived == 1 { "" } else { "s" }),
        format!("certificate  until {}", or(&status["certificateUntil"], "unknown")),
        "pod traffic  not encrypted between nodes".to_owned(),
    ];
    let waiting = status["waiting"].as_array().into_iter().flatten();
    let waiting = waiting.map(|wait| format!("waits        {}", text(&wait["message"])));
    out.splice(5..5, waiting);
    out.extend(authorities(&status["authorities"]));
    let warnings = status["warnings"].as_array().into_iter().flatten();
    out.extend(warnings.map(|warning| format!("warning      {}", text(warning))));
    let complaints = status["network"].as_array().into_iter().flatten();
    out.extend(complaints.map(|complaint| format!("network      {}", text(complaint))));
    let left_alone = status["leftAlone"].as_array().into_iter().flatten();
    out.extend(left_alone.map(|node| {
        format!("left alone   {}: {}", or(&node["name"], &text(&node["id"])), text(&node["reason"]))
    }));
    out.push(String::new());
    for node in status["nodes"].as_array().into_iter().flatten() {
        let what = match node["disk"].as_str() {
            Some("full") if node["name"] == status["leader"] => {
                "FULL, so writes are refused; free some space there"
            }
            Some("full") => "FULL; free some space there, before it leads",
            Some("failed") => {
                "FAILED; its pods go on, but it votes no more; look at the disk, then start skein anew there"
            }
            _ => continue,
        };
        out.insert(4, format!("disk of {}  {what}", text(&node["name"])));
    }
    if let Some(failed) = status["failed"].as_str() {
        out.insert(4, format!("store        STOPPED on this node: {failed}"));
    }
    let rows = status["nodes"].as_array().into_iter().flatten().map(|node| {
        let role = match (node["voter"].as_bool(), node["learner"].as_bool()) {
            (Some(true), _) if node["name"] == status["leader"] => "leader",
            (Some(true), _) => "voter",
            _ if node["storeLost"] == true => "store lost",
            (_, Some(true)) => "learner",
            _ => "follower",
        };
        vec![
            text(&node["name"]),
            // How it goes says more than that it is there.
            or(&node["departure"], &text(&node["state"])),
            role.to_owned(),
            if node["ready"] == true { "yes" } else { "no" }.to_owned(),
            node["pods"].to_string(),
            node["lag"].as_u64().map_or("-".into(), |lag| lag.to_string()),
            or(&node["address"], "-"),
        ]
    });
    out.extend(table(&["NAME", "STATE", "VOTE", "READY", "PODS", "LAG", "ADDRESS"], rows));
    lines(out)
}

/// What there is to say of the authorities: nothing, mostly.
fn authorities(known: &Value) -> Option<String> {
    let until = known["oldUntil"].as_str();
    let holders = known["holders"].as_array()?;
    Some(match () {
        () if holders.is_empty() => {
            "authorities  LOST: no member keeps them, so no certificate can be made".to_owned()
        }
        () if known["changing"] == true => "authorities  are being made anew".to_owned(),
        () => format!("authorities  changed; kubeconfigs of before are good until {}", until?),
    })
}

pub(super) fn create_token(
    dir: &Path,
    uses: u32,
    ttl: Duration,
    replaces: Option<&str>,
) -> Result<(), Failure> {
    let body = json!({ "uses": uses, "ttl_seconds": ttl.as_secs(), "replaces": replaces });
    let made = talk(dir, Method::POST, "tokens", Some(body))?;
    lines([text(&made["token"])])
}

pub(super) fn list_tokens(dir: &Path, output: Output) -> Result<(), Failure> {
    let listed = talk(dir, Method::GET, "tokens", None)?;
    let tokens = listed["tokens"].as_array().cloned().unwrap_or_default();
    match output {
        Output::Table => {
            let rows = tokens.iter().map(|token| {
                vec![
                    text(&token["id"]),
                    text(&token["state"]),
                    token["usesLeft"].to_string(),
                    text(&token["expires"]),
                    or(&token["replaces"], "-"),
                ]
            });
            lines(table(&["ID", "STATE", "USES LEFT", "EXPIRES", "REPLACES"], rows))
        }
        Output::Name => lines(tokens.iter().map(|token| text(&token["id"]))),
        _ => print(&listed["tokens"], output),
    }
}

pub(super) fn revoke_token(dir: &Path, id: &str) -> Result<(), Failure> {
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(format!("{id:?} is no token id; see: skein token list").into());
    }
    talk(dir, Method::DELETE, &format!("tokens/{id}"), None)?;
    lines([format!("token {id} revoked")])
}

pub(super) fn load_image(dir: &Path, file: &Path, here: bool) -> Result<(), Failure> {
    let reader: Box<dyn Read + Send> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        let archive =
            std::fs::File::open(file).map_err(|error| format!("cannot open {}: {error}", file.display()))?;
        if archive.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(format!(
                "{} is a directory; give the archive's file, or - for a pipe",
                file.display()
            )
            .into());
        }
        Box::new(archive)
    };
    let pieces = futures::stream::unfold(reader, |mut reader| async move {
        let mut piece = vec![0; PIECE_BYTES];
        match reader.read(&mut piece) {
            Ok(0) => None,
            Ok(count) => {
                piece.truncate(count);
                Some((Ok(Frame::data(Bytes::from(piece))), reader))
            }
            Err(error) => Some((Err(error), reader)),
        }
    });
    let verb = if here { "images?here=true" } else { "images" };
    let loaded = talk_with(dir, Method::POST, verb, StreamBody::new(pieces.boxed()))?;
    lines(
        loaded["images"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|image| format!("loaded {} ({})", text(&image["name"]), text(&image["digest"]))),
    )
}

pub(super) fn remove_images(dir: &Path, names: &[String]) -> Result<(), Failure> {
    // A typing error is told before anything is removed.
    let names = names.iter().map(|name| Images::full_name(name)).collect::<Result<Vec<_>, _>>()?;
    for name in names {
        talk(dir, Method::DELETE, &format!("images/{name}"), None)?;
        lines([format!("removed {name}")])?;
    }
    Ok(())
}

pub(super) fn prune_images(dir: &Path) -> Result<(), Failure> {
    let removed = talk(dir, Method::DELETE, "images", None)?;
    let names = removed["names"].as_array().into_iter().flatten();
    lines(names.map(|name| format!("removed {}", text(name))))
}

pub(super) fn list_images(dir: &Path, output: Output) -> Result<(), Failure> {
    let listed = talk(dir, Method::GET, "images", None)?;
    let images = listed["images"].as_array().cloned().unwrap_or_default();
    match output {
        Output::Table => {
            let rows = images.iter().map(|image| vec![text(&image["name"]), short_digest(&image["digest"])]);
            lines(table(&["NAME", "DIGEST"], rows))
        }
        Output::Name => lines(images.iter().map(|image| text(&image["name"]))),
        _ => print(&listed["images"], output),
    }
}

fn short_digest(digest: &Value) -> String {
    text(digest).chars().take(DIGEST_CHARS).collect()
}

pub(super) fn list_clients(dir: &Path, output: Output) -> Result<(), Failure> {
    let listed = talk(dir, Method::GET, "clients", None)?;
    let clients = listed["clients"].as_array().cloned().unwrap_or_default();
    match output {
        Output::Table => {
            let rows = clients.iter().map(|client| {
                let word = |field: &str| text(&client[field]);
                let day = |field: &str| word(field).chars().take(DAY_CHARS).collect();
                let serial = word("serial").chars().take(SERIAL_CHARS).collect();
                vec![serial, word("user"), word("state"), day("issued"), day("expires"), word("node")]
            });
            lines(table(&["SERIAL", "USER", "STATE", "ISSUED", "EXPIRES", "NODE"], rows))
        }
        Output::Name => lines(clients.iter().map(|client| text(&client["serial"]))),
        _ => print(&listed["clients"], output),
    }
}

pub(super) fn revoke_clients(dir: &Path, serial: Option<&str>, user: Option<&str>) -> Result<(), Failure> {
    let verb = match (serial, user) {
        (Some(serial), _) => format!("clients/{}", in_path("serial", serial, CLIENTS)?),
        (None, user) => format!("users/{}", in_path("user's name", user.unwrap_or_default(), CLIENTS)?),
    };
    let revoked = talk(dir, Method::DELETE, &verb, None)?;
    lines(revoked["revoked"].as_array().into_iter().flatten().map(|client| {
        match (text(&client["serial"]), text(&client["user"])) {
            (serial, user) if user.is_empty() => {
                format!("certificate {serial} revoked; it was not on record")
            }
            (serial, user) => format!("certificate {serial} of {user} revoked"),
        }
    }))
}

pub(super) fn rotate(dir: &Path, now: bool, overlap: Duration, yes: bool) -> Result<(), Failure> {
    let end = match now {
        true => "all kubeconfigs end at once".to_owned(),
        false => format!("all kubeconfigs of before end in {}", in_days(overlap)),
    };
    let meant =
        format!("This makes all authorities of the cluster anew: all join tokens end at once, and {end}.");
    confirm(&meant, yes)?;
    let wanted = json!({ "now": now, "overlap_seconds": overlap.as_secs() });
    let rotated = talk(dir, Method::POST, "ca/rotate", Some(wanted))?;
    lines(rotation(&rotated))
}

/// What has come of authorities that were made anew.
fn rotation(rotated: &Value) -> [String; 3] {
    let tokens = rotated["tokensEnded"].as_u64().unwrap_or(0);
    [
        format!("All authorities are new (edition {}); nodes change over by themselves.", rotated["edition"]),
        format!("TOKENS OF BEFORE HAVE ENDED ({tokens}). Make new ones with: skein token create"),
        match rotated["oldUntil"].as_str() {
            Some(until) => format!(
                "KUBECONFIGS OF BEFORE END on {until}. Make new ones with: skein kubeconfig; end the old ones sooner with: skein ca rotate --now"
            ),
            None => "KUBECONFIGS OF BEFORE HAVE ENDED. Make new ones with: skein kubeconfig".to_owned(),
        },
    ]
}

/// Asks once on a terminal; a program says `--yes`.
pub(super) fn confirm(meant: &str, yes: bool) -> Result<(), Failure> {
    use std::io::IsTerminal;
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(format!("{meant} If that is meant, say it with --yes").into());
    }
    eprint!("{meant}\nGo on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err("nothing was changed".into()),
    }
}

fn in_days(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..172_800 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A word that can stand in the path of a request to the daemon as it is.
pub(super) fn in_path<'w>(what: &str, word: &'w str, see: &str) -> Result<&'w str, Failure> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || ".:@_-".contains(c);
    if word.is_empty() || !word.chars().all(harmless) {
        return Err(format!("{word:?} is no {what}; see: {see}").into());
    }
    Ok(word)
}

pub(super) fn leave(dir: &Path) -> Result<(), Failure> {
    let done = follow(dir, "leave")?;
    if done["drained"] != true {
        eprintln!("some pods did not end in time; they were left behind and are replaced elsewhere");
    }
    set_aside(dir, "left the cluster", &text(&done["aside"]))
}

/// Says what has ended, once the daemon has ended as well and has moved what it knew: whoever reads this may begin anew
/// at once.
fn set_aside(dir: &Path, what: &str, aside: &str) -> Result<(), Failure> {
    let home = Home::new(dir);
    let begun = Instant::now();
    while home.is_claimed() && begun.elapsed() < ENDING_MAX {
        std::thread::sleep(Duration::from_millis(20));
    }
    if home.is_claimed() {
        return lines([format!(
            "{what}; its daemon is still ending, and moves what it knew to {aside} then"
        )]);
    }
    lines([format!(
        "{what}; what this node knew of it is in {aside} now: keep it for a while, or remove it. This machine is free to join or to found"
    )])
}

pub(super) fn remove(dir: &Path, name: &str, now: bool) -> Result<(), Failure> {
    let name = in_path("node's name", name, "skein status")?;
    let done = follow(dir, &format!("members/{name}{}", if now { "?now=true" } else { "" }))?;
    if done["drained"] != true {
        eprintln!("some of its pods did not end in time; they are replaced elsewhere");
    }
    let users: Vec<String> = done["usersEnded"].as_array().into_iter().flatten().map(text).collect();
    let mut said = vec![format!(
        "{name} is no member any more: its key and certificates count no more, and its name is free"
    )];
    if !users.is_empty() {
        said.push(format!(
            "the kubeconfigs that were made on it have ended ({}); make new ones with: skein kubeconfig",
            users.join(", ")
        ));
    }
    lines(said)
}

pub(super) fn remove_stolen(dir: &Path, name: &str, yes: bool) -> Result<(), Failure> {
    let name = in_path("node's name", name, "skein status")?;
    let meant = format!(
        "This ends the membership of {name} at once and makes all authorities of the cluster anew: ALL join tokens and ALL \
         kubeconfigs end, wherever they were made."
    );
    confirm(&meant, yes)?;
    let done = follow(dir, &format!("members/{name}?stolen=true"))?;
    lines([format!("{name} is no member any more: its key counts no more, and its name is free")])?;
    lines(rotation(&done["rotated"]))?;
    lines(["What Secrets held is on its disk as well: change those passwords and keys where they count."])
}

pub(super) fn end_cluster(dir: &Path, force: bool) -> Result<(), Failure> {
    let home = Home::new(dir);
    // Without a daemon there may be what one has left whose directory was deleted under it.
    if !home.is_claimed()
        && matches!(home.membership(), Ok(None))
        && let Ok(claim) = home.claim()
    {
        let former = Former::find(&home, None)?;
        if !former.is_empty() {
            let said = former.end_all();
            drop(claim);
            return lines(
                said.is_empty().then(|| "nothing ran here any more".to_owned()).into_iter().chain(said),
            );
        }
    }
    let verb = if force { "leave?end-cluster=true&force=true" } else { "leave?end-cluster=true" };
    let ended = talk(dir, Method::POST, verb, None)?;
    let others: Vec<String> = ended["leftBehind"].as_array().into_iter().flatten().map(text).collect();
    if !others.is_empty() {
        eprintln!(
            "{} was not asked: where that runs or comes back, this node counts as a member that is lost; end that there \
             with: skein remove NAME",
            others.join(" and ")
        );
    }
    set_aside(dir, "the cluster has ended", &text(&ended["aside"]))
}

/// Takes back the wish that this node leaves, or that `name` is removed.
pub(super) fn stay(dir: &Path, name: Option<&str>) -> Result<(), Failure> {
    talk(dir, Method::DELETE, &departure_of(name)?, None)?;
    lines([format!("{} stays a member, and takes pods again", name.unwrap_or("this node"))])
}

fn departure_of(name: Option<&str>) -> Result<String, Failure> {
    Ok(match name {
        Some(name) => format!("members/{}", in_path("node's name", name, "skein status")?),
        None => "leave".to_owned(),
    })
}

/// Tells how far a departure has come until it is over. Ctrl-C takes it back, if it can be.
fn follow(dir: &Path, verb: &str) -> Result<Value, Failure> {
    match talk_in_lines(dir, Method::POST, verb, |progress| eprintln!("{progress}"))? {
        Some(last) => match last["message"].as_str() {
            Some(message) => Err(message.into()),
            None => Ok(last["done"].clone()),
        },
        None => {
            let wish = verb.split('?').next().unwrap_or(verb);
            match talk(dir, Method::DELETE, wish, None) {
                Ok(_) => Err("interrupted, and taken back: it stays a member, and takes pods again".into()),
                Err(error) => {
                    Err(format!("interrupted, but it was too late to take it back: {error}").into())
                }
            }
        }
    }
}

pub(super) fn print(value: &Value, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => lines([serde_json::to_string_pretty(value)?]),
        _ => lines([serde_norway::to_string(value)?.trim_end().to_owned()]),
    }
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    let mut all = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    all.extend(rows);
    let widths: Vec<usize> =
        (0..head.len()).map(|column| all.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

/// Prints lines; a reader that has gone away (`| head`) is no error.
pub(super) fn lines(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        match writeln!(out, "{}", line.as_ref()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn or(value: &Value, otherwise: &str) -> String {
    value.as_str().unwrap_or(otherwise).to_owned()
}
