//! What an artifact holds, as lists and as plain files, with a real bucket.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

use axum::{
    body::Body,
    http::{Method, request::Builder},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use longshore_artifact::{ArtifactRoot, Bases, PackSink, SinkError, pack_key, root_key};
use longshore_s3::Bucket;
use longshore_schemas::{
    ArtifactId, PackId,
    http::{FileKind, FilesView, PacksAnswer, Role},
};
use serde_json::json;
use tower::ServiceExt;

use super::{
    working::http,
    world::{Answered, World, artifact, request},
};
use crate::Limits;

const LARGE: usize = 3 * 1024 * 1024;

struct ToBucket(Bucket);

#[async_trait::async_trait]
impl PackSink for ToBucket {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        Ok(self.0.put(&pack_key(&pack), bytes).await?)
    }
}

/// Noise, a hole, noise.
fn large() -> Vec<u8> {
    let mut bytes = vec![0; LARGE];
    let mut noise = blake3::Hasher::new().finalize_xof();
    noise.fill(&mut bytes[..LARGE / 3]);
    noise.fill(&mut bytes[2 * LARGE / 3..]);
    bytes
}

fn make(tree: &Path) {
    fs::create_dir_all(tree.join("bin/empty")).expect("made");
    fs::write(tree.join("bin/large"), large()).expect("written");
    fs::write(tree.join("bin/Größe 1%.txt"), "text").expect("written");
    symlink("bin/large", tree.join("link")).expect("linked");
    fs::write(tree.join("nothing"), "").expect("written");
}

async fn published(world: &World) -> ArtifactRoot {
    let folder = tempfile::tempdir().expect("a folder");
    make(folder.path());
    let sink = Arc::new(ToBucket(world.bucket.clone()));
    let root = longshore_artifact::publish(folder.path(), Bases::default(), sink).await.expect("published").root;
    world.bucket.put(&root_key(&root.artifact), root.to_json().into()).await.expect("stored");
    world.toy.state().artifacts.push(artifact(root.artifact, true));
    root
}

impl World {
    async fn file(&self, artifact: &ArtifactId, path: &str, headers: &[(&str, &str)]) -> Answered {
        self.send(self.asking(artifact, path, headers).body(Body::empty()).expect("valid")).await
    }

    fn asking(&self, artifact: &ArtifactId, path: &str, headers: &[(&str, &str)]) -> Builder {
        let path = format!("/v1/artifacts/{artifact}/files/{path}");
        let request = request(Method::GET, &path, self.token(Role::Viewer));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
    }
}

#[tokio::test]
async fn a_tree_is_listed_page_by_page() {
    let world = World::new().await;
    let id = published(&world).await.artifact;
    let list = async |query: &str| world.get(&format!("/v1/artifacts/{id}/files{query}")).await;
    let all: FilesView = list("").await.expect_status(200).json();
    let paths: Vec<_> = all.page.items.iter().map(|file| (file.path.as_str(), file.kind)).collect();
    let expected = [
        ("bin/Größe 1%.txt", FileKind::File),
        ("bin/empty", FileKind::Directory),
        ("bin/large", FileKind::File),
        ("link", FileKind::Link),
        ("nothing", FileKind::File),
    ];
    assert_eq!((paths.as_slice(), all.artifact, all.name.as_str()), (&expected[..], id, "web"));
    assert_eq!(all.page.items[2].size_bytes, LARGE as u64);
    assert_eq!(all.page.items[3].target.as_deref(), Some("bin/large"));
    assert_eq!(all.page.items[4].mode.as_deref().map(str::len), Some(3));

    let mut found = Vec::new();
    let mut query = "?limit=2".to_owned();
    loop {
        let page = list(&query).await.expect_status(200).json::<FilesView>().page;
        found.extend(page.items);
        let Some(next) = page.next else { break };
        query = format!("?limit=2&after={}", next.replace('%', "%25").replace(' ', "%20"));
    }
    assert_eq!(found, all.page.items);
    let below: FilesView = list("?under=bin/").await.expect_status(200).json();
    assert_eq!(below.page.items, all.page.items[..3]);
    list("?under=bi").await.expect_problem(404, "nothing at");
    list("?limit=1001").await.expect_problem(422, "limit");
    world.get(&format!("/v1/artifacts/{}/files", ArtifactId::of(b"?"))).await.expect_problem(404, "no artifact");
}

#[tokio::test]
async fn a_file_is_sent_whole_or_in_ranges() {
    let world = World::new().await;
    let id = published(&world).await.artifact;
    let whole = world.file(&id, "bin/large", &[]).await.expect_status(200);
    assert!(whole.body == large(), "the bytes are the file's");
    assert_eq!(whole.header("content-length"), LARGE.to_string());
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert!(whole.header("content-disposition").contains("filename=\"large\""));
    let tag = whole.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.len() == 66, "{tag}");

    let (begin, end) = (LARGE / 3 - 5, 2 * LARGE / 3 + 5);
    let range = format!("bytes={begin}-{}", end - 1);
    for headers in [&[("range", &*range)][..], &[("range", &range), ("if-range", &tag)]] {
        let part = world.file(&id, "bin/large", headers).await.expect_status(206);
        assert!(part.body == large()[begin..end], "the bytes are the range's");
        assert_eq!(part.header("content-range"), format!("bytes {begin}-{}/{LARGE}", end - 1));
    }
    let last = world.file(&id, "bin/large", &[("range", "bytes=-3")]).await.expect_status(206);
    assert_eq!(last.body, large()[LARGE - 3..]);
    let other = world.file(&id, "bin/large", &[("range", "bytes=0-1"), ("if-range", "\"other\"")]).await;
    assert_eq!(other.expect_status(200).body.len(), LARGE, "of another version, a range is worth nothing");
    let beyond = world.file(&id, "bin/large", &[("range", "bytes=9999999-")]).await;
    beyond.expect_problem(416, "has 3145728 bytes");
    assert_eq!(beyond.header("content-range"), format!("bytes */{LARGE}"));
    let known = world.file(&id, "bin/large", &[("if-none-match", &format!("\"x\", {tag}"))]).await.expect_status(304);
    assert_eq!((known.body.len(), known.header("etag")), (0, &*tag));

    let head = request(Method::HEAD, &format!("/v1/artifacts/{id}/files/bin/large"), world.token(Role::Viewer));
    let head = world.send(head.body(Body::empty()).expect("valid")).await.expect_status(200);
    assert_eq!((head.body.len(), head.header("content-length")), (0, &*LARGE.to_string()));
}

#[tokio::test]
async fn names_links_and_folders_are_what_people_expect() {
    let world = World::new().await;
    let id = published(&world).await.artifact;
    let text = world.file(&id, "bin/Gr%C3%B6%C3%9Fe%201%25.txt", &[]).await.expect_status(200);
    assert_eq!(text.body, "text");
    assert_eq!(world.file(&id, "nothing", &[]).await.expect_status(200).body.len(), 0);
    let link = world.file(&id, "link", &[]).await.expect_status(307);
    assert_eq!(link.header("location"), format!("/v1/artifacts/{id}/files/bin/large"));
    world.file(&id, "bin", &[]).await.expect_problem(422, "is a folder");
    world.file(&id, "bin/empty", &[]).await.expect_problem(422, "is a folder");
    world.file(&id, "bin/larg", &[]).await.expect_problem(404, "nothing at");
}

#[tokio::test]
async fn a_damaged_pack_ends_the_download_without_a_wrong_byte() {
    let world = World::new().await;
    let root = published(&world).await;
    for pack in &root.packs {
        let mut bytes = world.bucket.get(&pack_key(&pack.pack), pack.bytes).await.expect("there").to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        world.bucket.put(&pack_key(&pack.pack), bytes.into()).await.expect("stored");
    }
    let asked = world.asking(&root.artifact, "bin/large", &[]).body(Body::empty()).expect("valid");
    let mut body = world.router().oneshot(asked).await.expect("infallible").into_body();
    let (mut got, large) = (0, large());
    let ended = loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                let bytes = frame.into_data().expect("data");
                assert!(bytes == large[got..got + bytes.len()], "no byte is wrong");
                got += bytes.len();
            }
            other => break other.map(|frame| frame.expect_err("an error").to_string()),
        }
    };
    assert!(ended.is_some_and(|error| error.contains("damaged")) && got < LARGE, "{got} of {LARGE} bytes");
}

#[tokio::test]
async fn downloads_have_a_gate_and_leave_it() {
    let world = World::with(Limits { downloads_max: 1, ..Limits::default() }).await;
    let id = published(&world).await.artifact;
    let asked = || world.asking(&id, "bin/large", &[]).body(Body::empty()).expect("valid");
    let first = world.router().oneshot(asked()).await.expect("infallible");
    world.send(asked()).await.expect_problem(503, "api.downloads");
    drop(first);
    world.send(asked()).await.expect_status(200);
}

#[tokio::test]
async fn packs_can_be_read_by_those_who_may_read_the_artifact() {
    let world = World::new().await;
    let root = published(&world).await;
    let id = root.artifact;
    let told: ArtifactRoot = world.get(&format!("/v1/artifacts/{id}/root")).await.expect_status(200).json();
    assert_eq!(told, root);
    let pack = root.packs[0];
    let packs = format!("/v1/artifacts/{id}/packs");
    let answer = world.post(&packs, Role::Viewer, &json!({ "packs": [pack.pack] })).await.expect_status(200);
    let url = answer.json::<PacksAnswer>().packs.remove(0).url;
    let got = http().get(url).send().await.expect("sent").bytes().await.expect("read");
    assert_eq!(PackId::of(&got), pack.pack);
    let other = json!({ "packs": [PackId::of(b"another's")] });
    world.post(&packs, Role::Viewer, &other).await.expect_problem(422, "is none of");
}
