//! What was altered, is another's, or is garbage is not taken; and an envelope's bytes stay what they are.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use longshore_provenance::{Error, STATEMENT, Statement, built, verify};
use longshore_schemas::{ArtifactId, Timestamp, envelope::Envelope, events::BuildSpec};
use longshore_signing::{Error as EnvelopeError, SigningKey, TrustedKeys, from_json, sign};
use proptest::prelude::*;
use serde_json::{Value, json};

/// `LONGSHORE_WRITE_GOLDEN=1 cargo test -p longshore-provenance` writes it where it is missing; what is there is never changed.
const GOLDEN: &str = "golden/envelope.json";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn artifact() -> ArtifactId {
    ArtifactId::of(b"golden")
}

fn build() -> BuildSpec {
    let build = json!({
        "name": "web",
        "repository": "https://git.example/web.git",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "command": ["make", "web"],
        "output": "out",
        "environment": { "TOKEN": "secret" },
        "run": { "command": ["./web"] },
    });
    serde_json::from_value(build).expect("a build")
}

fn statement() -> Statement {
    let (job, worker) = ("default-17".parse().expect("a job"), "w-1".parse().expect("a worker"));
    let (started, finished) = (Timestamp(1_700_000_000_000), Timestamp(1_700_000_060_000));
    built(&artifact(), &build(), (&job, 2, &worker), Some(started), finished)
}

fn envelope() -> Envelope {
    statement().sign(&key(1))
}

fn trusted() -> TrustedKeys {
    (*key(1).public()).into()
}

#[test]
fn a_released_envelope_is_valid_for_ever() {
    let written = format!("{}\n", serde_json::to_string_pretty(&envelope()).expect("JSON"));
    if std::env::var_os("LONGSHORE_WRITE_GOLDEN").is_some() && !std::path::Path::new(GOLDEN).exists() {
        std::fs::write(GOLDEN, &written).expect("written");
    }
    let golden = std::fs::read_to_string(GOLDEN).expect("golden/envelope.json is there");
    let read = from_json(&STATEMENT, golden.as_bytes()).expect("an envelope");
    let verified = verify(&read, &trusted(), &artifact()).expect("valid");
    assert_eq!((verified.statement, verified.key), (statement(), *key(1).public()));
    assert_eq!(golden, written, "an ed25519 signature of the same bytes is the same");
}

#[test]
fn a_statement_says_what_was_built_and_keeps_secrets() {
    let statement = serde_json::to_value(statement()).expect("JSON");
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(statement["subject"][0]["digest"]["blake3"], artifact().to_string());
    assert_eq!(definition["resolvedDependencies"][0]["uri"], "git+https://git.example/web.git");
    assert_eq!(definition["resolvedDependencies"][0]["digest"]["gitCommit"], build().commit.to_string());
    let digest = blake3::hash(br#"["make","web"]"#).to_hex().to_string();
    assert_eq!(definition["externalParameters"]["commandDigest"]["blake3"], digest);
    assert_eq!(statement["predicate"]["runDetails"]["builder"]["id"], "urn:longshore:worker:w-1");
    assert_eq!(statement["predicate"]["runDetails"]["metadata"]["invocationId"], "default-17/2");
    assert_eq!(statement["predicate"]["runDetails"]["metadata"]["finishedOn"], "2023-11-14T22:14:20.000Z");
    assert!(!statement.to_string().contains("secret"), "{statement}");
}

/// Every leaf of the statement, by its path.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(value, &format!("{path}/{name}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| leaves(value, &format!("{path}/{at}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn no_field_can_be_altered() {
    let statement = serde_json::to_value(statement()).expect("JSON");
    let mut paths = Vec::new();
    leaves(&statement, "", &mut paths);
    assert!(paths.len() >= 17, "{paths:?}");
    for path in paths {
        let mut altered = statement.clone();
        *altered.pointer_mut(&path).expect("there") = json!("altered");
        let payload = BASE64.encode(altered.to_string());
        let forged = Envelope { payload, ..envelope() };
        assert!(
            matches!(verify(&forged, &trusted(), &artifact()), Err(Error::Envelope(EnvelopeError::NotTrusted { .. }))),
            "{path}"
        );
    }
    let mut other_type = envelope();
    other_type.payload_type = "text/plain".to_owned();
    let refused = verify(&other_type, &trusted(), &artifact());
    assert!(matches!(refused, Err(Error::Envelope(EnvelopeError::WrongType { .. }))), "{refused:?}");
}

#[test]
fn whose_key_it_is_decides() {
    let error = verify(&envelope(), &(*key(2).public()).into(), &artifact()).expect_err("another key");
    assert!(error.to_string().contains("none of the 1 keys"), "{error}");
    // While a key is replaced, both are trusted, and either may have signed.
    let both = TrustedKeys::from_pem([key(2), key(1)].map(|key| key.public().pem()).concat().as_bytes());
    let both = both.expect("two keys");
    assert_eq!(verify(&envelope(), &both, &artifact()).expect("valid").key, *key(1).public());
    let next = statement().sign(&key(2));
    assert_eq!(verify(&next, &both, &artifact()).expect("valid").key, *key(2).public());
    // A signature that nobody knows beside one that is trusted does no harm, and a wrong hint neither.
    let mut two = envelope();
    two.signatures.insert(0, next.signatures[0].clone());
    two.signatures[1].keyid = "somebody".to_owned();
    assert_eq!(verify(&two, &trusted(), &artifact()).expect("valid").key, *key(1).public());
    two.signatures.remove(1);
    verify(&two, &trusted(), &artifact()).expect_err("only the unknown one is left");
}

#[test]
fn another_artifacts_provenance_is_not_this_ones() {
    let other = ArtifactId::of(b"other");
    let error = verify(&envelope(), &trusted(), &other).expect_err("another artifact");
    assert!(error.to_string().contains(&artifact().to_string()) && error.to_string().contains(&other.to_string()));
}

#[test]
fn what_is_signed_and_no_provenance_is_refused() {
    let whole = serde_json::to_value(statement()).expect("JSON");
    let with = |path: &str, value: Value| {
        let mut changed = whole.clone();
        *changed.pointer_mut(path).expect("there") = value;
        changed.to_string()
    };
    let two = json!([whole["subject"][0], whole["subject"][0]]);
    let table = [
        ("{}".to_owned(), "missing field"),
        ("no JSON".to_owned(), "expected"),
        (with("/_type", json!("https://in-toto.io/Statement/v0.1")), "not a https://in-toto.io/Statement/v1"),
        (with("/predicateType", json!("https://slsa.dev/provenance/v0.2")), "not a https://slsa.dev/provenance/v1"),
        (with("/subject", json!([])), "0 things"),
        (with("/subject", two), "2 things"),
        (with("/subject/0/digest", json!({ "sha256": artifact().to_string() })), "that of nothing"),
    ];
    for (payload, says) in table {
        let error = verify(&sign(&STATEMENT, payload.as_bytes(), &key(1)), &trusted(), &artifact()).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
    // What a newer version adds is passed over.
    let mut newer = whole.clone();
    newer["predicate"]["more"] = json!({ "x": 1 });
    verify(&sign(&STATEMENT, newer.to_string().as_bytes(), &key(1)), &trusted(), &artifact()).expect("valid");
}

#[test]
fn what_is_too_large_is_not_decoded() {
    let large = vec![b' '; STATEMENT.payload_bytes_max + 1];
    let error = verify(&sign(&STATEMENT, &large, &key(1)), &trusted(), &artifact()).expect_err("large");
    let limit = STATEMENT.payload_bytes_max;
    assert_eq!(error, EnvelopeError::TooLarge { bytes: limit + 1, limit }.into());
    let mut large = envelope();
    large.payload = "A".repeat(STATEMENT.envelope_bytes_max() + 4);
    assert!(matches!(verify(&large, &trusted(), &artifact()), Err(Error::Envelope(EnvelopeError::TooLarge { .. }))));
    assert!(matches!(
        from_json(&STATEMENT, &vec![b' '; STATEMENT.envelope_bytes_max() + 1]),
        Err(EnvelopeError::TooLarge { .. })
    ));
    for count in [0, 17] {
        let mut envelope = envelope();
        envelope.signatures = vec![envelope.signatures[0].clone(); count];
        assert!(
            matches!(verify(&envelope, &trusted(), &artifact()), Err(Error::Envelope(EnvelopeError::Malformed(_)))),
            "{count}"
        );
    }
    let mut long = envelope();
    long.signatures[0].sig = "A".repeat(1_000_000);
    assert!(matches!(verify(&long, &trusted(), &artifact()), Err(Error::Envelope(EnvelopeError::NotTrusted { .. }))));
}

proptest! {
    /// Whichever byte of an envelope becomes another: either it is refused, or it says the same and only its hint is another.
    #[test]
    fn no_byte_can_be_altered(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut json = serde_json::to_vec(&envelope()).expect("JSON");
        let at = at.index(json.len());
        json[at] = with;
        if let Ok(read) = from_json(&STATEMENT, &json)
            && let Ok(verified) = verify(&read, &trusted(), &artifact())
        {
            prop_assert_eq!(verified.statement, statement());
        }
    }

    #[test]
    fn any_bytes_are_survived(json in prop::collection::vec(any::<u8>(), 0..4096), payload in ".{0,200}", sig in ".{0,200}") {
        prop_assert!(from_json(&STATEMENT, &json).is_err());
        let mut envelope = envelope();
        envelope.payload_type = STATEMENT.payload_type.to_owned();
        envelope.payload = payload;
        envelope.signatures[0].sig = sig;
        prop_assert!(verify(&envelope, &trusted(), &artifact()).is_err());
    }
}
