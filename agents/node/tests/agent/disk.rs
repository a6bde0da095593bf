//! Nodes without room: a disk budget, and a small disk. What runs goes on running, the report says what is lacking, and all goes on once there
//! is room.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use longshore_schemas::{ArtifactId, PackId, events::NodeStatus, stream::NodeReport};
use rustls::crypto::ring;
use tempfile::TempDir;

use crate::{
    node::{Node, ask, goal},
    noise,
    region::{Heard, Region},
    with_assets,
};

const ASSETS_BYTES: usize = 12_000_000;
const MIB: u64 = 1024 * 1024;

/// A file system of a fixed size. Dropping it unmounts it.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn mount(bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-n", "-t", "tmpfs", "-o", &format!("size={bytes},mode=755"), "small"]).arg(folder.path());
        let output = mount.output().expect("tests of full disks need the command `mount`");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tests of full disks mount a tmpfs, for which they must run as root: {said}");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills it but for this much.
    fn fill(&self, free_bytes: u64) {
        let mut ballast = File::create(self.ballast()).expect("made");
        let block = vec![0; 64 * 1024];
        loop {
            match ballast.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        let full = ballast.metadata().expect("there").len();
        ballast.set_len(full.checked_sub(free_bytes).expect("it had so much space")).expect("shortened");
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that does not end in time may still use it.
        let _ = Command::new("umount").args(["-n", "-l"]).arg(self.path()).output();
    }
}

/// Three releases that have nothing in common, with what the packs of each and its files take.
async fn releases(region: &Region) -> [(ArtifactId, u64, u64); 3] {
    let mut made = Vec::new();
    for (seed, version) in (1..).zip(["one", "two", "three"]) {
        let artifact = with_assets(region, version, &noise(seed, ASSETS_BYTES), None).await;
        let root = region.root(&artifact);
        made.push((artifact, root.all_packs().iter().map(|pack| pack.bytes).sum(), root.size_bytes));
    }
    made.try_into().expect("three")
}

/// The last word of a revision, once it says this.
async fn told(region: &Region, revision: u64, words: &[&str]) -> NodeReport {
    let says = |report: &&NodeReport| {
        let message = report.message.as_deref().unwrap_or_default();
        report.version.revision == revision && words.iter().all(|word| message.contains(word))
    };
    region.wait_for("word of the shortage", |heard| heard.reports.iter().rev().find(says).cloned()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_holds_packs_and_releases_together() {
    let _ = ring::default_provider().install_default();
    let region = Region::start().await;
    let [(one, one_packs, one_files), (two, two_packs, two_files), (three, ..)] = releases(&region).await;
    // The second one fits beside the first if half of the first one's packs go.
    let budget = one_files + one_packs / 2 + two_packs + two_files;
    region.push(goal("web", 1, Some(one)));
    let mut node = Node::start_in("n-1", &region, None, &["--disk-budget", &budget.to_string()]);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    let packs_of = |artifact: &ArtifactId| -> BTreeSet<PackId> {
        region.root(artifact).all_packs().iter().map(|pack| pack.pack).collect()
    };
    assert_eq!(node.packs(), packs_of(&one));

    region.push(goal("web", 2, Some(two)));
    region.wait_status("web", 2, NodeStatus::Healthy).await;
    assert!(node.packs().is_superset(&packs_of(&two)), "they serve peers");
    let left: BTreeSet<PackId> = node.packs().intersection(&packs_of(&one)).copied().collect();
    assert!(!left.is_empty() && left.len() < packs_of(&one).len(), "{} of them are left", left.len());
    let told_what_is_left = |heard: &Heard| (heard.have.get(&one) == Some(&left)).then_some(());
    region.wait_for("word of what is left", told_what_is_left).await;
    let taken = node.pack_bytes() + one_files + two_files;
    assert!(taken <= budget, "{taken} of {budget}");

    let before = ask(port).await.expect("it answers");
    region.push(goal("web", 3, Some(three)));
    let report = told(&region, 3, &["no room for the release", "of the disk budget of", "--disk-budget"]).await;
    assert_eq!((report.status, report.port), (NodeStatus::Fetching, Some(port)));
    assert_eq!(ask(port).await.as_ref(), Some(&before), "what runs is left alone");
    assert!(!node.data().join("releases").join(three.to_string()).exists());

    node.kill_agent();
    node.start_agent(&["--disk-budget", &(2 * budget).to_string()]);
    region.wait_status("web", 3, NodeStatus::Healthy).await;
    assert_eq!(ask(port).await.expect("it answers").version, "three");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_small_disk_goes_on_when_there_is_space_again() {
    let _ = ring::default_provider().install_default();
    let (region, disk) = (Region::start().await, SmallDisk::mount(96 * MIB));
    let [(one, one_packs, _), (two, two_packs, two_files), _] = releases(&region).await;
    region.push(goal("web", 1, Some(one)));
    let node = Node::start_in("n-1", &region, Some(disk.path()), &[]);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");
    let before = ask(port).await.expect("it answers");

    // Too little even without the packs that only serve peers.
    disk.fill(two_packs + two_files - one_packs);
    region.push(goal("web", 2, Some(two)));
    let report = told(&region, 2, &["no room for the release", "of the disk can be free", "too little"]).await;
    assert_eq!((report.status, report.port), (NodeStatus::Fetching, Some(port)));
    assert_eq!(ask(port).await.as_ref(), Some(&before), "what runs is left alone");
    assert!(!node.data().join("releases").join(two.to_string()).exists());

    disk.free();
    region.wait_status("web", 2, NodeStatus::Healthy).await;
    assert_eq!(ask(port).await.expect("it answers").version, "two");
}
