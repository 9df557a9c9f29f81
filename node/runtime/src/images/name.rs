//! Image names by the grammar of Docker's references, as `oci-client` reads them.
//!
//! Read by hand: the regular expression that the library keeps for it, once it is used, takes some 10 MB for good.

use oci_client::Reference;

/// Longest name of a repository, and longest tag.
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
/// What stands for a registry that is not named.
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_REGISTRY_OF_OLD: &str = "index.docker.io";

/// The reference that `text` is; the error is a reason.
pub(super) fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon behind the last slash is a tag's, before it a port's.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag is letters, digits, \"_\", \".\" and \"-\", 128 at most");
    }
    if let Some(digest) = digest {
        check_digest(digest)?;
    }
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
        _ => (DEFAULT_REGISTRY, name.to_owned()),
    };
    if !is_registry(registry) {
        return Err("what stands before the first \"/\" is no host, or no host with a port");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the name of a repository must be lower case");
    }
    if !repository.split('/').all(is_component) {
        return Err(
            "a name is lower case letters and digits, with single \".\", \"_\", \"__\" or \"-\" between them",
        );
    }
    let registry = if registry == DEFAULT_REGISTRY_OF_OLD { DEFAULT_REGISTRY } else { registry };
    let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let repository = if is_official { format!("library/{repository}") } else { repository };
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err("the name of a repository has more than 255 letters");
    }
    let (registry, tag) = (registry.to_owned(), tag.map(str::to_owned));
    Ok(match (tag, digest.map(str::to_owned)) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag, digest),
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".to_owned())),
    })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= TAG_BYTES_MAX
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn check_digest(digest: &str) -> Result<(), &'static str> {
    let (algorithm, hex) = digest.split_once(':').ok_or("a digest needs \"sha256:\" before it")?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("its kind of digest is not known"),
    };
    let is_whole = hex.len() == length && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_whole { Ok(()) } else { Err("its digest has not the digits that such a one has") }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let is_part = |part: &str| {
        let is_alphanumeric = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        is_alphanumeric(part.bytes().next())
            && is_alphanumeric(part.bytes().last())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(is_part) && port.is_none_or(is_port)
}

/// Words of lower case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_between =
        |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    let ends = [component.bytes().next(), component.bytes().last()];
    ends.into_iter().all(|end| end.is_some_and(is_word))
        && component
            .split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit())
            .all(is_between)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The library is what everybody else reads names by.
        #[test]
        fn a_name_means_what_the_library_reads(
            host in "|localhost/|docker.io/|index.docker.io/|[aA1.-]{1,4}(:[0-9]{0,2})?/",
            path in "[a1A._/-]{0,6}",
            tag in "(:[aA1._/-]{0,4})?",
            digest in "|@sha256:[0-9aF]{64}|@sha256:[0-9a]{32}|@sha512:[0-9a]{128}|@md5:[0-9a]{32}|@",
        ) {
            let text = format!("{host}{path}{tag}{digest}");
            let is_lower = |name: &Reference| !name.repository().bytes().any(|byte| byte.is_ascii_uppercase());
            let library = text.parse::<Reference>().ok().filter(is_lower);
            prop_assert_eq!(parse(&text).ok(), library, "{}", text);
        }
    }

    #[test]
    fn tags_and_repositories_have_a_longest_one() {
        for (repository, tag) in [(255, 128), (256, 128), (255, 129)] {
            let text = format!("a.b/{}:{}", "a".repeat(repository), "b".repeat(tag));
            assert_eq!(parse(&text).ok(), text.parse::<Reference>().ok(), "{repository} {tag}");
        }
    }
}
