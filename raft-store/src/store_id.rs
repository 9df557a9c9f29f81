//! Whose store a directory is, and of which cluster: the name under which it votes, written once.
//!
//! The file `store`: `"SKEINSTO" | format u32 = 2 | node 16 | store 8 | cluster 16 | incarnation's number u64,
//! id 16 | crc u32`. Format 1, which ends after `store`, becomes format 2 when it is opened.

use std::io;

use bytes::Bytes;

use crate::files::Files;
use crate::{ClusterTag, VoterId};

const FILE: &str = "store";
const TEMPORARY: &str = "store.tmp";
const MAGIC: &[u8; 8] = b"SKEINSTO";
const FORMAT: u32 = 2;
const LENGTH: usize = 80;
/// Of format 1, which knows no cluster.
const LENGTH_1: usize = 40;

/// Why a directory has no voter id. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreIdError {
    /// The disk did not do as it was told.
    #[error("could not read or write the store id {path}; check that the disk is mounted and has space")]
    Io {
        /// The file.
        path: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// The file is not as it was written.
    #[error("the store id {path} is damaged; move the data directory away and join this node anew")]
    Damaged {
        /// The file.
        path: String,
    },
    /// There is a log or a snapshot, but nothing that says whose.
    #[error(
        "the store id {path} is missing beside a log or a snapshot; put it back, or move the data directory away and join this node anew"
    )]
    Missing {
        /// The file.
        path: String,
    },
    /// A newer build wrote it.
    #[error(
        "the store id {path} has format {found}, this build reads up to {FORMAT}; start the newer build that wrote it"
    )]
    NewerFormat {
        /// The file.
        path: String,
        /// The format it has.
        found: u32,
    },
    /// The directory was copied from another node, or the node's key was replaced.
    #[error(
        "the store {path} belongs to node {owner}, not to this one; bring back that node's key, or move the data directory away and join anew"
    )]
    Foreign {
        /// The file.
        path: String,
        /// The voter it belongs to.
        owner: VoterId,
    },
    /// It holds another history than this node's cluster has.
    #[error(
        "the store {path} is of {found}, this node of {wanted}; move the data directory away and join this node anew"
    )]
    OtherCluster {
        /// The file.
        path: String,
        /// What it says.
        found: ClusterTag,
        /// Where this node belongs.
        wanted: ClusterTag,
    },
}

/// The voter id of the store in `files`, which is of `tag`. A directory without log and snapshot is given the
/// id of `node` and `fresh`, eight random bytes, durably.
///
/// A store that an older build made is taken to be of `tag`: that build has let it into that cluster.
pub async fn load_or_create<F: Files>(
    files: &F,
    node: [u8; 16],
    fresh: [u8; 8],
    tag: ClusterTag,
) -> Result<VoterId, StoreIdError> {
    let path = || files.describe(FILE);
    let failed = |source| StoreIdError::Io { path: path(), source };
    let Some((owner, found)) = load(files).await? else {
        if holds_anything(files).await.map_err(failed)? {
            return Err(StoreIdError::Missing { path: path() });
        }
        let voter = VoterId { node, store: fresh };
        write(files, voter, tag).await.map_err(failed)?;
        return Ok(voter);
    };
    if owner.node != node {
        return Err(StoreIdError::Foreign { path: path(), owner });
    }
    match found {
        Some(found) if found != tag => Err(StoreIdError::OtherCluster { path: path(), found, wanted: tag }),
        Some(_) => Ok(owner),
        None => write(files, owner, tag).await.map(|()| owner).map_err(failed),
    }
}

/// Whose store lies in `files`, and of which cluster, where a build has noted that; `None` if none does.
pub async fn load<F: Files>(files: &F) -> Result<Option<(VoterId, Option<ClusterTag>)>, StoreIdError> {
    let path = || files.describe(FILE);
    match files.read(FILE, 0, LENGTH + 1).await {
        Ok(bytes) => parse(&bytes).map(Some).map_err(|fault| match fault {
            Fault::Damaged => StoreIdError::Damaged { path: path() },
            Fault::NewerFormat(found) => StoreIdError::NewerFormat { path: path(), found },
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreIdError::Io { path: path(), source }),
    }
}

async fn holds_anything<F: Files>(files: &F) -> io::Result<bool> {
    for directory in ["log", "snap", "follow"] {
        match files.list(directory).await {
            Ok(listed) if listed.is_empty() => {}
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

async fn write<F: Files>(files: &F, voter: VoterId, tag: ClusterTag) -> io::Result<()> {
    files.remove(TEMPORARY).await?;
    files.append(TEMPORARY, 0, Bytes::copy_from_slice(&to_bytes(voter, tag)), true).await?;
    files.rename(TEMPORARY, FILE).await?;
    files.sync_directory("").await
}

fn to_bytes(voter: VoterId, tag: ClusterTag) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..28].copy_from_slice(&voter.node);
    bytes[28..36].copy_from_slice(&voter.store);
    bytes[36..52].copy_from_slice(&tag.cluster);
    bytes[52..60].copy_from_slice(&tag.number.to_le_bytes());
    bytes[60..76].copy_from_slice(&tag.incarnation);
    let sum = crc32c::crc32c(&bytes[..76]);
    bytes[76..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

enum Fault {
    Damaged,
    NewerFormat(u32),
}

fn parse(bytes: &[u8]) -> Result<(VoterId, Option<ClusterTag>), Fault> {
    let format = match bytes.get(8..12) {
        Some(format) if bytes.starts_with(MAGIC) => {
            u32::from_le_bytes(format.try_into().expect("four bytes"))
        }
        _ => return Err(Fault::Damaged),
    };
    let length = match format {
        1 => LENGTH_1,
        FORMAT => LENGTH,
        0 => return Err(Fault::Damaged),
        newer => return Err(Fault::NewerFormat(newer)),
    };
    let (body, sum) =
        bytes.split_last_chunk::<4>().filter(|_| bytes.len() == length).ok_or(Fault::Damaged)?;
    if crc32c::crc32c(body).to_le_bytes() != *sum {
        return Err(Fault::Damaged);
    }
    let mut fields = Fields(&body[12..]);
    let voter = VoterId { node: fields.take(), store: fields.take() };
    let tag = (format == FORMAT).then(|| ClusterTag {
        cluster: fields.take(),
        number: u64::from_le_bytes(fields.take()),
        incarnation: fields.take(),
    });
    Ok((voter, tag))
}

/// Fields of fixed size, one after the other. There are as many bytes as the format has.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *field
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use openraft::AsyncRuntime;
    use openraft_rt_sim::SimRuntime;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::sim_files::SimDisk;

    const NODE: [u8; 16] = [1; 16];
    const TAG: ClusterTag = ClusterTag { cluster: [3; 16], number: 1, incarnation: [4; 16] };

    async fn load(disk: &SimDisk, fresh: u8) -> Result<VoterId, StoreIdError> {
        load_or_create(&disk.files::<SimRuntime>(), NODE, [fresh; 8], TAG).await
    }

    #[test]
    fn a_store_keeps_its_first_id_over_power_cuts() {
        for seed in 0..20 {
            SimRuntime::run(async {
                let disk = SimDisk::new(seed);
                let first = load(&disk, 7).await.unwrap();
                assert_eq!(first, VoterId { node: NODE, store: [7; 8] });
                disk.power_cut(&mut SmallRng::seed_from_u64(seed));
                assert_eq!(load(&disk, 8).await.unwrap(), first, "seed {seed}");
            });
        }
    }

    #[test]
    fn an_emptied_directory_gets_a_new_id_and_one_with_a_log_refuses() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            load(&disk, 7).await.unwrap();
            let files = disk.files::<SimRuntime>();
            files.remove(FILE).await.unwrap();
            assert_eq!(load(&disk, 8).await.unwrap().store, [8; 8]);

            let files = disk.files::<SimRuntime>();
            files.make_directory("log").await.unwrap();
            files.append("log/0000000001.seg", 0, Bytes::from_static(b"x"), true).await.unwrap();
            files.remove(FILE).await.unwrap();
            assert!(matches!(load(&disk, 9).await, Err(StoreIdError::Missing { .. })));
        });
    }

    #[test]
    fn every_cut_and_flip_and_another_nodes_store_refuse() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            load(&disk, 7).await.unwrap();
            let whole = disk.bytes(FILE).unwrap();
            for at in 0..whole.len() {
                disk.put(FILE, whole[..at].to_vec());
                assert!(matches!(load(&disk, 8).await, Err(StoreIdError::Damaged { .. })), "cut at {at}");
                for mask in [0x01, 0x80, 0xff] {
                    let mut flipped = whole.clone();
                    flipped[at] ^= mask;
                    disk.put(FILE, flipped);
                    let refused = load(&disk, 8).await.unwrap_err();
                    assert!(
                        matches!(refused, StoreIdError::Damaged { .. } | StoreIdError::NewerFormat { .. }),
                        "flip at {at}: {refused}"
                    );
                }
            }
            disk.put(FILE, whole);
            let files = disk.files::<SimRuntime>();
            let refused = load_or_create(&files, [2; 16], [7; 8], TAG).await.unwrap_err();
            assert!(matches!(refused, StoreIdError::Foreign { .. }), "{refused}");
        });
    }

    #[test]
    fn a_store_of_another_cluster_or_another_incarnation_is_refused_and_left_as_it_is() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            load(&disk, 7).await.unwrap();
            let whole = disk.bytes(FILE).unwrap();
            for other in [
                ClusterTag { cluster: [9; 16], ..TAG },
                ClusterTag { number: 2, ..TAG },
                ClusterTag { incarnation: [9; 16], ..TAG },
            ] {
                let refused = load_or_create(&disk.files::<SimRuntime>(), NODE, [8; 8], other).await;
                let refused = refused.unwrap_err();
                assert!(
                    matches!(refused, StoreIdError::OtherCluster { found: TAG, wanted, .. } if wanted == other),
                    "{refused}"
                );
                assert_eq!(disk.bytes(FILE).unwrap(), whole);
            }
            assert_eq!(load(&disk, 8).await.unwrap().store, [7; 8]);
        });
    }

    #[test]
    fn a_store_that_knew_no_cluster_belongs_to_its_nodes_cluster_from_then_on() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let mut old = b"SKEINSTO\x01\0\0\0".to_vec();
            old.extend([NODE.as_slice(), &[7; 8]].concat());
            old.extend(crc32c::crc32c(&old).to_le_bytes());
            disk.put(FILE, old);
            assert_eq!(load(&disk, 8).await.unwrap().store, [7; 8]);
            let other = ClusterTag { cluster: [9; 16], ..TAG };
            let refused = load_or_create(&disk.files::<SimRuntime>(), NODE, [8; 8], other).await.unwrap_err();
            assert!(matches!(refused, StoreIdError::OtherCluster { found: TAG, .. }), "{refused}");
        });
    }
}
