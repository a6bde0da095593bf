//! Few bytes that claim, or become, very many: what they cost is bounded by the formats' limits, whatever they say.

use std::{collections::HashMap, io::Write};

use bytes::Bytes;
use longshore_artifact::{ArtifactRoot, Index, Manifest, PackRef};
use longshore_fuzz::memory::measured;
use longshore_schemas::{
    ArtifactId, PackId,
    codec::{self, SCHEMAS},
    events::{BuildRequest, Request},
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn packed(bytes: Vec<u8>) -> (PackRef, Bytes) {
    (PackRef { pack: PackId::of(&bytes), bytes: bytes.len() as u64 }, Bytes::from(bytes))
}

/// Five million entries in less than a pack. A root that admits so many is refused unseen, and so are 10^9; one that says less is held to
/// it; and the reader alone stops at four million, and before that what it holds is bounded.
#[test]
fn a_small_pack_with_more_entries_than_a_tree_may_have_is_refused() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("memory");
    encoder.write_all(b"LSMANIF\x01").expect("memory");
    for number in 0..5_000_000 {
        let path = format!("{number:08}");
        encoder.write_all(&[&[3, 8], path.as_bytes()].concat()).expect("memory");
    }
    encoder.write_all(&[0]).expect("memory");
    let (manifest, bytes) = packed(encoder.finish().expect("memory"));
    println!("{} bytes of pack", manifest.bytes);
    let (layout, nothing) = packed(zstd::encode_all(&b"LSLAYOU\x01\0\0"[..], 1).expect("memory"));
    let packs = HashMap::from([(manifest.pack, bytes), (layout.pack, nothing)]);
    let root = ArtifactRoot {
        artifact: ArtifactId::of(b"any"),
        size_bytes: 0,
        files: 4_000_000,
        chunks: 0,
        manifest: vec![manifest],
        manifest_key: 0,
        layout: vec![layout],
        packs: Vec::new(),
        provenance: None,
    };
    let (error, peak) = measured(|| Index::decode(&root, &packs).map(drop).expect_err("too many"));
    println!("{} MiB at the peak", peak / MIB);
    assert!(error.to_string().contains("more than 4000000 entries"), "{error}");
    assert!(peak < 512 * MIB, "{} MiB", peak / MIB);
    let (error, peak) = measured(|| Index::check(&root, &packs).expect_err("too many"));
    assert!(error.to_string().contains("more than 4000000 entries"), "{error}");
    assert!(peak < 16 * MIB, "{peak} bytes for {error}, keeping nothing");
    for (files, says) in
        [(5_000_000, "5000000 entries"), (1_000_000_000, "1000000000 entries"), (10, "more than 10 entries")]
    {
        let root = ArtifactRoot { files, ..root.clone() };
        let (error, peak) = measured(|| Index::decode(&root, &packs).map(drop).expect_err("a lie"));
        assert!(error.to_string().contains(says), "{error}");
        assert!(peak < 16 * MIB, "{peak} bytes for {error}");
    }
}

/// A text, a list and a file's chunks that claim to be as long as a length can say.
#[test]
fn claimed_lengths_take_no_memory() {
    let longest = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let half_gib = [0xfe, 0xff, 0xff, 0xff, 0x03];
    let id = SCHEMAS[0].id.to_be_bytes();
    for claim in [&longest[..], &half_gib[..]] {
        let record = [&[0], &id[..], claim, b"r-1"].concat();
        let decode = || codec::decode::<Request<BuildRequest>>(&record).expect_err("cut short");
        // How records of that version are read is worked out once.
        decode();
        let (error, peak) = measured(decode);
        assert!(peak < 64 * KIB, "{peak} bytes for {error}");
        let manifest = [b"LSMANIF\x01\x01\x01a", &[0, 0][..], claim, claim].concat();
        let (error, peak) = measured(|| Manifest::read(&manifest[..]).map(drop).expect_err("cut short"));
        assert!(peak < 256 * KIB, "{peak} bytes for {error}");
    }
}
