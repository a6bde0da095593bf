//! What was built elsewhere, published by a person, with a real bucket.

use longshore_artifact::{pack_key, root_key};
use longshore_provenance::{IMPORT_TYPE, verify};
use longshore_schemas::{
    PackId,
    envelope::Envelope,
    http::{ArtifactView, Role, Source, UploadsAnswer},
};
use longshore_signing::SigningKey;
use serde_json::{Value, json};

use super::{
    working::{packed, put},
    world::World,
};

fn body(root: &impl serde::Serialize) -> Value {
    let run = json!({ "command": ["./web"] });
    json!({ "name": "web", "origin": "https://ci.example/17", "run": run, "root": root, "new_pack_bytes": 5 })
}

#[tokio::test]
async fn what_was_built_elsewhere_is_checked_as_what_was_built_here() {
    let world = World::new().await;
    let (root, packs) = packed().await;
    world.post("/v1/imports", Role::Builder, &body(&root)).await.expect_problem(422, "3 of 3 packs are not in the");
    assert_eq!(world.records().await, 0, "nothing was written");
    world.post("/v1/imports", Role::Viewer, &body(&root)).await.expect_problem(403, "role builder");

    let sizes: Vec<_> = root.all_packs().iter().map(|pack| json!({ "pack": pack.pack, "bytes": pack.bytes })).collect();
    let uploads = world.post("/v1/imports/uploads", Role::Builder, &json!({ "packs": sizes })).await.expect_status(200);
    for upload in uploads.json::<UploadsAnswer>().uploads {
        let bytes = packs.iter().find(|bytes| PackId::of(bytes) == upload.pack).expect("one of them").clone();
        assert_eq!(put(&upload.url, &upload.headers, bytes).await, 200);
    }
    let large = json!({ "packs": [{ "pack": root.packs[0].pack, "bytes": 9_000_000 }] });
    world.post("/v1/imports/uploads", Role::Builder, &large).await.expect_problem(422, "a pack has 1 to");

    let mut nowhere = body(&root);
    nowhere["origin"] = json!("");
    world.post("/v1/imports", Role::Builder, &nowhere).await.expect_problem(422, "origin: say where");
    nowhere["origin"] = json!("somewhere");
    world.post("/v1/imports", Role::Builder, &nowhere).await.expect_problem(422, "origin must be a URL");
    let answer = world.post("/v1/imports", Role::Builder, &body(&root)).await.expect_status(201);
    assert_eq!(answer.header("location"), format!("/v1/artifacts/{}", root.artifact));
    let view: ArtifactView = answer.json();
    let Source::Imported(origin) = view.source else { panic!("it was imported") };
    assert_eq!((origin.url.as_str(), origin.imported_by.as_str()), ("https://ci.example/17", "some-builder"));
    assert_eq!((view.summary.packs, view.summary.new_pack_bytes), (3, 5));
    assert!(world.bucket.head(&root_key(&root.artifact)).await.expect("asked").is_some());
    assert!(world.bucket.head(&pack_key(&root.packs[0].pack)).await.expect("asked").is_some());

    let provenance = world.get(&format!("/v1/artifacts/{}/provenance", root.artifact)).await.expect_status(200);
    let trusted = (*SigningKey::from_seed(&[7; 32]).public()).into();
    let verified = verify(&provenance.json::<Envelope>(), &trusted, &root.artifact).expect("valid");
    let definition = verified.statement.predicate.build_definition;
    assert_eq!(definition.build_type, IMPORT_TYPE);
    assert_eq!(definition.external_parameters["importedBy"], "some-builder");
    assert_eq!(definition.resolved_dependencies[0].uri, "https://ci.example/17");
}
