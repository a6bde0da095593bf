//! Files and links that others change behind the agent's back.

use std::{fs, os::unix::fs::PermissionsExt};

use longshore_schemas::{events::NodeStatus, stream::NodeReport};
use rustls::crypto::ring;

use crate::{
    node::{Node, SERVE, ask, goal, release, wait_until},
    region::{Heard, Region},
    running,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_release_is_reported_mended_and_started_again() {
    let (region, mut node, port) = running("good").await;
    node.kill_agent();
    node.start_agent(&["--drift-interval", "1"]);
    let current = node.service_file("current");
    let release = fs::canonicalize(&current).expect("it points to the release");
    let before = ask(port).await.expect("it answers");

    // What a service writes beside its program is its own.
    fs::write(release.join("notes"), "mine").expect("written");
    fs::write(release.join("version"), "evil").expect("written");
    let told = |status: NodeStatus, word: &'static str| {
        let is = move |report: &&NodeReport| {
            report.status == status && report.message.as_deref().is_some_and(|message| message.contains(word))
        };
        move |heard: &Heard| heard.reports.iter().find(is).and_then(|report| report.message.clone())
    };
    let message = region.wait_for("word of the drift", told(NodeStatus::Starting, "drift: ")).await;
    assert!(message.contains("/version"), "{message}");
    region.wait_for("word that it is mended", told(NodeStatus::Healthy, "drift was mended")).await;
    wait_until("it runs again", async || ask(port).await.is_some_and(|answer| answer.pid != before.pid)).await;
    assert_eq!(ask(port).await.expect("it answers").version, "good");
    assert_eq!(fs::read_to_string(release.join("version")).expect("there"), "good");
    assert_eq!(fs::read_to_string(release.join("notes")).expect("there"), "mine");

    // A file that is gone, and a link that points elsewhere.
    fs::remove_file(release.join("version")).expect("removed");
    wait_until("the file is back", async || fs::read_to_string(release.join("version")).is_ok_and(|v| v == "good"))
        .await;
    fs::remove_file(&current).expect("removed");
    std::os::unix::fs::symlink("/tmp", &current).expect("made");
    let back = async || fs::canonicalize(&current).is_ok_and(|found| found == release);
    wait_until("current points to the release", back).await;

    // What is there already is looked at before it is used.
    let (name, other) = (release.file_name().expect("a name").to_string_lossy().into_owned(), release.join("version"));
    region.push(goal("web", 2, None));
    region.wait_status("web", 2, NodeStatus::Stopped).await;
    fs::write(&other, "evil").expect("written");
    region.push(goal("web", 3, Some(name.parse().expect("an artifact"))));
    region.wait_status("web", 3, NodeStatus::Healthy).await;
    assert_eq!(ask(port).await.expect("it answers").version, "good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_failed_release_spoilt_for_the_one_before_is_replaced() {
    let _ = ring::default_provider().install_default();
    let (region, folder) = (Region::start().await, tempfile::tempdir().expect("a folder"));
    release(folder.path(), "good", SERVE);
    let shared = folder.path().join("shared");
    fs::write(&shared, "right").expect("written");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o444)).expect("set");
    let good = region.publish(folder.path(), None).await;
    region.push(goal("web", 1, Some(good)));
    let node = Node::start("n-1", &region);
    let port = region.wait_status("web", 1, NodeStatus::Healthy).await.port.expect("it has one");

    let installed = node.data().join("releases").join(good.to_string()).join("shared");
    let witness = node.data().join("witness");
    fs::hard_link(&installed, &witness).expect("linked");
    release(folder.path(), "bad", "chmod u+w shared; echo wrong > shared; chmod u-w shared; exit 3");
    let bad = region.publish(folder.path(), Some(good)).await;
    region.push(goal("web", 2, Some(bad)));
    region.wait_status("web", 2, NodeStatus::RolledBack).await;
    let is_right = async || fs::read_to_string(&installed).is_ok_and(|found| found == "right");
    wait_until("the release that was gone back to is mended", is_right).await;
    wait_until("it runs", async || ask(port).await.is_some_and(|answer| answer.version == "good")).await;
    // The file itself is as the failed release left it, if the two shared it: on a file system without reflinks.
    let left = fs::read_to_string(&witness).expect("there");
    assert!(["right", "wrong\n"].contains(&&*left), "{left}");
    assert_eq!(node.transfers()[1].shared_bytes, 5, "{:?}", node.transfers());
}
