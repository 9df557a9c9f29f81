//! The image that is always there: this very program, which runs from a bare directory because it is static.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::digest::Hashing;
use super::{Digest, Error, Image, Images, Unfinished};
use crate::engine::{ImageConfig, RootfsSource};

/// Its name. It needs no network, no registry and no disk but the program's own size.
pub const BUILT_IN: &str = "skein.dev/tiny";

/// Whether `reference` means the built-in image, whose only tag is `latest`.
pub fn is_built_in(reference: &str) -> bool {
    reference.strip_suffix(":latest").unwrap_or(reference) == BUILT_IN
}

/// Layers of the built-in image; the digest of the program follows.
pub(super) const LAYER_PREFIX: &str = "built-in-";

/// The image, its one layer made from the running executable if that has changed since.
pub(super) fn image(images: &Images) -> Result<Image, Error> {
    let program = fs::File::open("/proc/self/exe").map_err(Error::io("open this program"))?;
    let metadata = program.metadata().map_err(Error::io("read this program"))?;
    // The same file, unchanged: hashing it again would cost every start of a pod.
    let key = format!("{}-{}-{}-{}", metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime_nsec());
    let place = images.layer_path(&format!("{LAYER_PREFIX}{}", Digest::of(key.as_bytes()).hex()));
    if !place.exists() {
        let tmp = Unfinished(Some(images.tmp()));
        let mut copied = Hashing::new(program);
        fill(tmp.path(), &mut copied).map_err(Error::io("unpack the built-in image"))?;
        fs::write(tmp.path().join("etc/image"), copied.finish().0.to_string())
            .map_err(Error::io("unpack the built-in image"))?;
        tmp.keep(&place).map_err(Error::io("keep the built-in image"))?;
    }
    let digest = fs::read_to_string(place.join("etc/image")).map_err(Error::io("read the built-in image"))?;
    let digest = digest.parse().map_err(|error| Error::invalid("the built-in image", error))?;
    let config = ImageConfig {
        entrypoint: vec!["/skein".into(), "tiny".into()],
        env: vec!["PATH=/".into()],
        ..ImageConfig::default()
    };
    Ok(Image { digest, rootfs: RootfsSource { lower: vec![place], config } })
}

fn fill(root: &std::path::Path, program: &mut impl io::Read) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(root.join("etc"))?;
    fs::create_dir_all(root.join("tmp"))?;
    for dir in [root.to_owned(), root.join("etc")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/skein\nnobody:x:65534:65534:nobody:/:/skein\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let mut file = fs::File::create(root.join("skein"))?;
    io::copy(program, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))
}
