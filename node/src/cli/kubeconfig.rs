//! `skein kubeconfig`: printed, or put into the file that kubectl reads, beside the clusters that are there already.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::Value;
use serde_norway::{Mapping, Value as Yaml};

use super::talk::talk;
use super::verbs::{CLIENTS, in_path, lines};
use super::{Output, secret, verbs};
use crate::daemon::Failure;

/// More than a thousand clusters take.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// What a kubeconfig lists by name.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

pub(super) fn print(dir: &Path, user: Option<&str>) -> Result<(), Failure> {
    verbs::print(&ask(dir, user)?, Output::Yaml)
}

/// Puts it into `file`; without one into the first that KUBECONFIG names, else into `~/.kube/config`.
pub(super) fn merge_into(dir: &Path, user: Option<&str>, file: Option<&Path>) -> Result<(), Failure> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => usual_file()?,
    };
    // A link stays one: what it leads to is replaced.
    let file = fs::canonicalize(&file).unwrap_or(file);
    let unusable = |why: String| format!("cannot use {}: {why}; it is left as it was", file.display());
    let there = read(&file).map_err(unusable)?;
    // That the file is unusable is known before a certificate is made.
    let new = ask(dir, user)?;
    let merged = merge(there, &serde_norway::to_value(&new)?).map_err(unusable)?;
    let text = serde_norway::to_string(&merged)?;
    if let Some(folder) = file.parent().filter(|folder| *folder != Path::new("")) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    }
    secret::write_file(&file, |unfinished| Ok(unfinished.write_all(text.as_bytes())?))?;
    let contexts = new["contexts"].as_array().into_iter().flatten();
    let contexts: Vec<String> = contexts.map(|context| verbs::text(&context["name"])).collect();
    let own = verbs::text(&new["current-context"]);
    let current = merged.get("current-context").and_then(Yaml::as_str).unwrap_or_default();
    let next = match current == own {
        true => format!("kubectl uses {own} now"),
        false => {
            format!("kubectl uses {current} as before; to change that: kubectl config use-context {own}")
        }
    };
    lines([format!("{} knows {} now", file.display(), contexts.join(", ")), next])
}

/// A kubeconfig from the daemon. What there is to say about it goes to standard error.
fn ask(dir: &Path, user: Option<&str>) -> Result<Value, Failure> {
    let verb = match user {
        Some(user) => format!("kubeconfig?user={}", in_path("user's name", user, CLIENTS)?),
        None => "kubeconfig".to_owned(),
    };
    let mut answer = talk(dir, Method::GET, &verb, None)?;
    if let Some(warning) = answer["warning"].as_str() {
        eprintln!("skein: {warning}");
    }
    Ok(answer["kubeconfig"].take())
}

/// Where kubectl looks.
fn usual_file() -> Result<PathBuf, Failure> {
    let named = std::env::var_os("KUBECONFIG");
    let named = named.and_then(|paths| std::env::split_paths(&paths).find(|path| path != Path::new("")));
    let home = || std::env::home_dir().map(|home| home.join(".kube/config"));
    named.or_else(home).ok_or_else(|| "there is no home directory; say where to: --merge=FILE".into())
}

/// What is in the file; nothing if it is not there.
fn read(file: &Path) -> Result<Mapping, String> {
    let mut bytes = Vec::new();
    match fs::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mapping::new()),
        read => read.map_err(|error| error.to_string())?,
    };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    match serde_norway::from_slice(&bytes).map_err(|error| format!("it is no kubeconfig: {error}"))? {
        Yaml::Null => Ok(Mapping::new()),
        Yaml::Mapping(known) if known.get("kind").is_none_or(|kind| kind.as_str() == Some("Config")) => {
            Ok(known)
        }
        _ => Err("it is no kubeconfig: its kind is not Config".to_owned()),
    }
}

/// What was there, with the clusters, users and contexts of `new` in the place of those of their names. Contexts of
/// nodes that are no members any more go. The current context stays, if it is still there.
fn merge(mut known: Mapping, new: &Yaml) -> Result<Mapping, String> {
    let named = |list: &Yaml, name: &str| {
        list.as_sequence().into_iter().flatten().find(|one| one["name"] == name).cloned()
    };
    let server_name = |cluster: &Yaml| cluster["cluster"]["tls-server-name"].clone();
    let own = &new["clusters"][0];
    let empty = || Yaml::Sequence(Vec::new());
    let clusters = known.get("clusters").cloned().unwrap_or_else(empty);
    let is_own = |cluster: &&Yaml| !server_name(own).is_null() && server_name(cluster) == server_name(own);
    let old: Vec<&Yaml> = clusters.as_sequence().into_iter().flatten().filter(is_own).collect();
    if let Some(other) =
        old.iter().find(|old| fingerprint(old).is_some_and(|known| Some(known) != fingerprint(own)))
    {
        return Err(format!(
            "its {:?} is another cluster of the same name; give another file with --merge=FILE, or take that out of it",
            other["name"].as_str().unwrap_or_default()
        ));
    }
    let gone: Vec<&str> = old.iter().filter_map(|old| old["name"].as_str()).collect();
    let is_stale = |list: &str, one: &Yaml| match list {
        "clusters" => one["name"].as_str().is_some_and(|name| gone.contains(&name)),
        "contexts" => one["context"]["cluster"].as_str().is_some_and(|cluster| gone.contains(&cluster)),
        _ => false,
    };
    for list in LISTS {
        let there = known.entry(list.into()).or_insert_with(empty);
        if there.is_null() {
            *there = empty();
        }
        let there = there.as_sequence_mut().ok_or_else(|| format!("its {list} are no list"))?;
        let is_new = |one: &Yaml| one["name"].as_str().is_some_and(|name| named(&new[list], name).is_some());
        there.retain(|one| !is_stale(list, one) && !is_new(one));
        there.extend(new[list].as_sequence().into_iter().flatten().cloned());
    }
    let current = known.get("current-context").and_then(Yaml::as_str).unwrap_or_default();
    if named(&known["contexts"], current).is_none() {
        known.insert("current-context".into(), new["current-context"].clone());
    }
    for key in ["apiVersion", "kind"] {
        known.entry(key.into()).or_insert_with(|| new[key].clone());
    }
    Ok(known)
}

/// Which cluster it is, if skein wrote it.
fn fingerprint(cluster: &Yaml) -> Option<&str> {
    let mut extensions = cluster["cluster"]["extensions"].as_sequence().into_iter().flatten();
    extensions.find(|one| one["name"] == "skein.dev").and_then(|own| own["extension"]["fingerprint"].as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(cluster: &str, fingerprint: &str, nodes: &[&str]) -> Yaml {
        let entry = |name: &str| {
            serde_json::json!({ "name": name, "cluster": {
                "server": format!("https://{name}"), "tls-server-name": format!("{cluster}.skein"),
                "extensions": [{ "name": "skein.dev", "extension": { "fingerprint": fingerprint } }],
            } })
        };
        let context =
            |name: &str| serde_json::json!({ "name": name, "context": { "cluster": name, "user": "admin" } });
        let names: Vec<String> = nodes.iter().map(|node| format!("{cluster}-{node}")).collect();
        let new = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": names[0],
            "clusters": names.iter().map(|name| entry(name)).collect::<Vec<_>>(),
            "users": [{ "name": format!("{cluster}-admin"), "user": { "client-key-data": "key" } }],
            "contexts": names.iter().map(|name| context(name)).collect::<Vec<_>>(),
        });
        serde_norway::to_value(new).unwrap()
    }

    fn merged(known: &Mapping, new: &Yaml) -> Mapping {
        merge(known.clone(), new).unwrap()
    }

    fn names(known: &Mapping, list: &str) -> Vec<String> {
        let list = known[list].as_sequence().unwrap().iter();
        list.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_empty_file_becomes_the_new_one() {
        let new = kubeconfig("home", "aa", &["one", "two"]);
        let all = merged(&Mapping::new(), &new);
        assert_eq!(Yaml::Mapping(all.clone())["current-context"], "home-one");
        assert_eq!(
            (names(&all, "contexts"), all["kind"].clone()),
            (vec!["home-one".into(), "home-two".into()], "Config".into())
        );
        // Once more changes nothing.
        assert_eq!(merged(&all, &new), all);
    }

    #[test]
    fn other_clusters_stay_and_nodes_that_have_gone_go() {
        let theirs = merged(&Mapping::new(), &kubeconfig("work", "bb", &["a"]));
        let mut theirs = merged(&theirs, &kubeconfig("home", "aa", &["one", "two"]));
        theirs.insert("preferences".into(), "theirs".into());
        let all = merged(&theirs, &kubeconfig("home", "aa", &["two", "three"]));
        assert_eq!(names(&all, "contexts"), ["work-a", "home-two", "home-three"]);
        assert_eq!(names(&all, "clusters"), names(&all, "contexts"));
        assert_eq!(names(&all, "users"), ["work-admin", "home-admin"]);
        assert_eq!((&all["current-context"], &all["preferences"]), (&"work-a".into(), &"theirs".into()));
        // The context that was current may be of a node that has gone.
        let mut theirs = theirs;
        theirs.insert("current-context".into(), "home-one".into());
        assert_eq!(merged(&theirs, &kubeconfig("home", "aa", &["two"]))["current-context"], "home-two");
    }

    #[test]
    fn another_cluster_of_the_same_name_is_not_replaced() {
        let theirs = merged(&Mapping::new(), &kubeconfig("home", "bb", &["a"]));
        let error = merge(theirs, &kubeconfig("home", "aa", &["one"])).unwrap_err();
        assert!(error.contains("home-a") && error.contains("--merge=FILE"), "{error}");
    }

    #[test]
    fn what_is_no_kubeconfig_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        assert_eq!(read(&file), Ok(Mapping::new()));
        for (text, why) in
            [("kind: Pod", "kind"), ("- one", "kind"), ("a: [", "no kubeconfig"), ("word", "kind")]
        {
            fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        fs::write(&file, "clusters: 7\n").unwrap();
        let error = merge(read(&file).unwrap(), &kubeconfig("home", "aa", &["one"])).unwrap_err();
        assert!(error.contains("clusters"), "{error}");
    }
}
