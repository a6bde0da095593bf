//! Real commits, real builds, a real bucket; only the server is a fake.

mod common;

use std::{collections::HashMap, fs};

use common::{Lab, git};
use longshore_artifact::{ArtifactRoot, Index, pack_key};
use longshore_schemas::{
    events::{BuildSpec, FailureReason},
    http::FinishBody,
};

fn root(body: FinishBody) -> (ArtifactRoot, u64) {
    match body {
        FinishBody::Succeeded { root, new_pack_bytes } => {
            (serde_json::from_value(root).expect("a root"), new_pack_bytes)
        }
        FinishBody::Failed { reason, message } => panic!("failed: {reason:?}: {message}"),
    }
}

async fn index(lab: &Lab, root: &ArtifactRoot) -> Index {
    let mut packs = HashMap::new();
    for pack in Index::packs(root) {
        packs.insert(pack.pack, lab.server.bucket.get(&pack_key(&pack.pack), 1 << 24).await.expect("stored"));
    }
    for pack in root.all_packs() {
        let size = lab.server.bucket.head(&pack_key(&pack.pack)).await.expect("reachable");
        assert_eq!(size, Some(pack.bytes));
    }
    Index::decode(root, &packs).expect("sound")
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_becomes_an_artifact() {
    let mut lab = Lab::start().await;
    let first = lab.commit(&[("data", &noise(3 << 20)), ("version", b"1")]);
    let second = lab.commit(&[("version", b"2")]);
    // Every call but claims and beats fails a few times, as when the server is restarted.
    lab.server.events().failures = 3;
    let script = "echo building; cat version; env; git rev-parse HEAD; mkdir -p out/empty && cp data version out && chmod +x out/data";

    let job = lab.queue(lab.spec(&first, script), None).await;
    let (old, old_bytes) = root(lab.finished(&job).await);
    let manifest = index(&lab, &old).await.manifest;
    let paths: Vec<_> = manifest.entries().iter().map(|entry| entry.path().to_owned()).collect();
    assert_eq!(paths, ["data", "empty", "version"]);
    assert!(old_bytes > 3 << 20, "{old_bytes}");
    assert!(lab.server.events().beats[&job] >= 1);

    let log = lab.server.log(&job).await;
    for text in [
        "building\n1",
        "LONGSHORE_JOB=default-1\n",
        "LONGSHORE_ATTEMPT=1\n",
        &format!("\n{first}\n"),
        "published artifact",
    ] {
        assert!(log.contains(text), "{text:?} is not in {log}");
    }
    assert!(!log.contains("CARGO"), "the worker's environment is not the build's: {log}");

    // The same name again: only what changed is uploaded.
    let job = lab.queue(lab.spec(&second, script), Some(&old)).await;
    let (new, new_bytes) = root(lab.finished(&job).await);
    assert!(new.artifact != old.artifact && new_bytes < 64 << 10, "{new_bytes}");
    index(&lab, &new).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_says_what_happened() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[("file", b"x")]);
    let spec = |change: &dyn Fn(&mut BuildSpec)| {
        let mut spec = lab.spec(&commit, "true");
        change(&mut spec);
        spec
    };
    let missing = "1".repeat(40);
    let table: Vec<(BuildSpec, FailureReason, &str)> = vec![
        (spec(&|s| s.repository = "/nowhere/at/all".into()), FailureReason::RepositoryUnreachable, "/nowhere/at/all"),
        (spec(&|s| s.repository = "ext::sh -c id".into()), FailureReason::RepositoryUnreachable, "https://"),
        (spec(&|s| s.commit = missing.parse().expect("a commit")), FailureReason::CommitNotFound, &missing),
        (spec(&|s| s.command = vec!["no-such-program".into()]), FailureReason::CommandNotFound, "PATH is"),
        (spec(&|s| s.command = vec!["./nothing".into()]), FailureReason::CommandNotFound, "not in the checkout"),
        (spec(&|s| s.command = vec!["./file".into()]), FailureReason::CommandNotFound, "executable"),
        (spec(&|s| s.command[2] = "echo why it broke; exit 7".into()), FailureReason::CommandFailed, "why it broke"),
        (spec(&|s| s.command[2] = "kill -9 $$".into()), FailureReason::CommandFailed, "signal 9"),
        (spec(&|_| {}), FailureReason::OutputMissing, "the checkout holds file"),
        (spec(&|s| s.output = "../x".into()), FailureReason::OutputInvalid, "relative"),
        (spec(&|s| s.command[2] = "mkfifo out".into()), FailureReason::OutputInvalid, "out"),
        (
            spec(&|s| {
                s.command[2] = "sleep 300".into();
                s.time_limit_seconds = 1;
            }),
            FailureReason::TimeLimitExceeded,
            "1 s",
        ),
    ];
    for (spec, expected, text) in table {
        let what = format!("{} {:?} {}", spec.repository, spec.command, spec.output);
        match lab.build(spec).await {
            FinishBody::Failed { reason, message } => {
                assert_eq!(reason, expected, "{what}: {message}");
                assert!(message.contains(text), "{what}: {message}");
            }
            FinishBody::Succeeded { .. } => panic!("{what} succeeded"),
        }
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_no_branch_and_new_ones_are_found() {
    let mut lab = Lab::start().await;
    let build = "cp file out";
    let first = lab.commit(&[("file", b"1")]);
    root(lab.build(lab.spec(&first, build)).await);
    // The cache knows the repository by now, and is damaged meanwhile.
    let second = lab.commit(&[("file", b"2")]);
    git(&lab.repository, &["checkout", "--quiet", "--detach", &first]);
    let cache = fs::read_dir(lab.folder.path().join("work/cache")).expect("readable").flatten().next().expect("cached");
    fs::write(cache.path().join("HEAD"), "nonsense").expect("written");
    root(lab.build(lab.spec(&second, build)).await);
    let loose = lab.commit(&[("file", b"3")]);
    root(lab.build(lab.spec(&loose, build)).await);
    lab.end().await;
}

/// Git says "success" of a checkout that lacks a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_lacks_files_of_a_commit_is_never_built_from() {
    let mut lab = Lab::start().await;
    let build = "cp file out";
    let first = lab.commit(&[("file", b"1")]);
    root(lab.build(lab.spec(&first, build)).await);
    let cache = fs::read_dir(lab.folder.path().join("work/cache")).expect("readable").flatten().next().expect("cached");
    let repository = lab.repository.clone();
    let object = |name: &str| {
        let id = git(&repository, &["rev-parse", name]);
        format!("objects/{}/{}", &id[..2], &id[2..])
    };

    // A fetch that was killed when it had written the commit and its tree.
    let second = lab.commit(&[("file", b"2")]);
    for name in [second.clone(), format!("{second}^{{tree}}")] {
        let (from, to) = (repository.join(".git").join(object(&name)), cache.path().join(object(&name)));
        fs::create_dir_all(to.parent().expect("a folder")).expect("created");
        fs::copy(from, to).expect("copied");
    }
    root(lab.build(lab.spec(&second, build)).await);

    // A disk that lost a file of a commit that was whole.
    fs::remove_file(cache.path().join(object(&format!("{second}:file")))).expect("removed");
    root(lab.build(lab.spec(&second, build)).await);

    // A fetch that was killed while it held git's own locks.
    let third = lab.commit(&[("file", b"3")]);
    for name in ["shallow.lock".to_owned(), format!("refs/longshore/{third}.lock")] {
        fs::write(cache.path().join(name), "").expect("written");
    }
    root(lab.build(lab.spec(&third, build)).await);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_build_is_killed_and_the_next_one_runs() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[]);
    let marker = lab.folder.path().join("pid");
    let script = format!("setsid sleep 300 & echo $! > {}; echo started; sleep 300", marker.display());
    let job = lab.queue(lab.spec(&commit, &script), None).await;
    lab.server.wait("the first output", |events| events.segments.get(&job).filter(|s| !s.is_empty()).map(|_| ())).await;
    lab.server
        .wait("the script's word", |_| fs::read_to_string(&marker).ok().filter(|text| text.ends_with('\n')).map(|_| ()))
        .await;
    lab.server.events().over.push(job.clone());

    let body = lab.build(lab.spec(&commit, "echo fine > out")).await;
    root(body);
    let pid = fs::read_to_string(&marker).expect("written");
    let alive = std::path::Path::new("/proc").join(pid.trim()).exists();
    assert!(!alive, "process {} of the canceled build is left", pid.trim());
    assert!(!lab.server.events().finished.contains_key(&job), "a canceled attempt reports nothing");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_kills_its_guard_and_keeper_leaves_nothing_either() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[]);
    let pids = lab.folder.path().join("pids");
    let script = format!(
        "(setsid sleep 300 & echo $! >> {0}); echo $$ >> {0}; \
         keeper=$(sed 's/.*) //' /proc/$PPID/stat | cut -d' ' -f2); kill -9 $keeper $PPID; sleep 300",
        pids.display()
    );
    let body = lab.build(lab.spec(&commit, &script)).await;
    let FinishBody::Failed { reason, .. } = body else { panic!("it cannot have succeeded: {body:?}") };
    assert_eq!(reason, FailureReason::WorkerFault);
    let pids = fs::read_to_string(&pids).expect("written");
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let lives = state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'));
        assert!(!lives, "process {pid} is left");
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_kills_its_build() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[]);
    let job = lab.queue(lab.spec(&commit, "mkdir -p a/b && touch a/b/c && chmod -w a/b a; sleep 300"), None).await;
    lab.server.wait("the first output", |events| events.segments.get(&job).filter(|s| !s.is_empty()).map(|_| ())).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_output_is_kept_whole() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[]);
    let script = "i=0; while [ $i -lt 40000 ]; do echo line number $i of a long log; i=$((i+1)); done; echo x > out";
    let job = lab.queue(lab.spec(&commit, script), None).await;
    root(lab.finished(&job).await);
    let log = lab.server.log(&job).await;
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("line number")).collect();
    assert_eq!(lines.len(), 40_000);
    assert_eq!(lines.last(), Some(&"line number 39999 of a long log"));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_told_while_the_rest_is_uploaded() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[]);
    lab.server.events().holds_back = true;
    let job = lab.queue(lab.spec(&commit, "head -c 30000000 /dev/urandom > out"), None).await;
    root(lab.finished(&job).await);
    {
        let events = lab.server.events();
        assert!(events.uploaded.len() > 2 && !events.told.is_empty());
        assert!(events.told.iter().all(|pack| events.uploaded.contains(pack)), "only what was asked for");
        let mut once = events.told.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), events.told.len(), "each once");
    }
    lab.end().await;
}
