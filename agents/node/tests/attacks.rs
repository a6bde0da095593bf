//! What somebody between the control nodes and this machine may try, of the kinds that The Update Framework lists: none of it is accepted.

use std::{fs, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use longshore_artifact::ArtifactRoot;
use longshore_node::{goals::GoalKeeper, trust::Trust};
use longshore_provenance::{STATEMENT, Statement, imported};
use longshore_schemas::{
    ArtifactId, RegionName, ServiceName, Timestamp, codec,
    envelope::Envelope,
    events::{
        ArtifactOrigin, BuildRequest, CancelRequested, Cohort, GoalState, GoalVersion, RegionalGoal, Request, RunSpec,
        Target,
    },
};
use longshore_signing::{SigningKey, goal::GOAL, sign};
use serde_json::json;
use tempfile::TempDir;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

const GOALS: u8 = 1;
const PROVENANCE: u8 = 2;
const STRANGER: u8 = 3;

fn region() -> RegionName {
    "eu".parse().expect("valid")
}

fn web() -> ServiceName {
    "web".parse().expect("valid")
}

/// A machine of region eu that trusts the two keys.
struct Machine {
    folder: TempDir,
    trust: Trust,
    keeper: GoalKeeper,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        let trust = Trust { goal_keys: file("goals.pub"), provenance_keys: file("provenance.pub") };
        fs::write(&trust.goal_keys, key(GOALS).public().pem()).expect("written");
        fs::write(&trust.provenance_keys, key(PROVENANCE).public().pem()).expect("written");
        let keeper = GoalKeeper::open(&file("goals.json"), trust.clone()).expect("new");
        Self { folder, trust, keeper }
    }

    fn restarted(self) -> Self {
        let Self { folder, trust, keeper } = self;
        drop(keeper);
        let keeper = GoalKeeper::open(&folder.path().join("goals.json"), trust.clone()).expect("there");
        Self { folder, trust, keeper }
    }

    fn trusts(&self, keys: &[u8]) {
        let pem: String = keys.iter().map(|seed| key(*seed).public().pem()).collect();
        fs::write(&self.trust.goal_keys, pem).expect("written");
    }

    /// Whether it takes the goal.
    fn takes(&self, envelope: &Envelope) -> bool {
        self.keeper.accept(envelope, &region()).is_ok_and(|offered| offered.is_news)
    }

    fn held(&self) -> Option<RegionalGoal> {
        self.keeper.watch().borrow().get(&web()).cloned()
    }
}

fn goal(version: (u64, u32), runs: &str) -> RegionalGoal {
    let run = RunSpec {
        command: vec!["./serve".to_owned()],
        environment: Default::default(),
        health: Default::default(),
        stop_signal: Default::default(),
        stop_seconds: 1,
        ..RunSpec::default()
    };
    let target =
        Target { cohort: Cohort::everyone(), revision: version.0, artifact: ArtifactId::of(runs.as_bytes()), run };
    let version = GoalVersion { revision: version.0, step: version.1 };
    RegionalGoal { region: region(), service: web(), version, targets: vec![target] }
}

fn record(goal: RegionalGoal) -> Vec<u8> {
    let id = "goal-1".parse().expect("valid");
    let event = GoalState::from(goal);
    let request = Request { id, at: Timestamp(0), actor: "goals".to_owned(), trace: None, report: None, event };
    codec::encode(&request).expect("encodes").to_vec()
}

fn signed_by(seed: u8, goal: RegionalGoal) -> Envelope {
    sign(&GOAL, &record(goal), &key(seed))
}

fn signed(goal: RegionalGoal) -> Envelope {
    signed_by(GOALS, goal)
}

/// With other bytes under the same signatures.
fn with_payload(envelope: &Envelope, change: impl FnOnce(&mut Vec<u8>)) -> Envelope {
    let mut payload = BASE64.decode(&envelope.payload).expect("base64");
    change(&mut payload);
    Envelope { payload: BASE64.encode(payload), ..envelope.clone() }
}

fn with_signature(envelope: &Envelope, change: impl FnOnce(&mut Vec<u8>)) -> Envelope {
    let mut changed = envelope.clone();
    let mut sig = BASE64.decode(&changed.signatures[0].sig).expect("base64");
    change(&mut sig);
    changed.signatures[0].sig = BASE64.encode(sig);
    changed
}

/// 2^252 + 27742317777372353535851937790883648493, little-endian: s and s + L verify alike where nobody looks.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

fn add_order(sig: &mut [u8]) {
    let mut carry = 0;
    for (byte, order) in sig[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
}

/// Goals that are not what the control nodes signed for this machine, by what is tried.
fn forged() -> Vec<(&'static str, Envelope)> {
    let newer = || goal((9, 1), "evil");
    let real = signed(newer());
    let unsigned = |envelope: &Envelope| Envelope { signatures: Vec::new(), ..envelope.clone() };
    let other_kind = sign(&STATEMENT, &record(newer()), &key(GOALS));
    let other_topic = {
        let event = BuildRequest::from(CancelRequested { job: "main-1".parse().expect("valid") });
        let id = "cancel-1".parse().expect("valid");
        let request = Request { id, at: Timestamp(0), actor: "me".to_owned(), trace: None, report: None, event };
        codec::encode(&request).expect("encodes").to_vec()
    };
    let other = signed(goal((8, 1), "other"));
    let mut elsewhere = newer();
    elsewhere.region = "us".parse().expect("valid");
    let length = BASE64.decode(&real.payload).expect("base64").len();
    let mut many = real.clone();
    many.signatures = vec![signed_by(STRANGER, newer()).signatures[0].clone(); 17];
    let mut long = real.clone();
    long.signatures[0].sig = "A".repeat(1_000_000);
    let mut hint = signed_by(STRANGER, newer());
    hint.signatures[0].keyid = key(GOALS).public().id();
    let mut both = signed_by(STRANGER, newer());
    both.signatures.extend(signed_by(PROVENANCE, newer()).signatures);
    vec![
        ("another key", signed_by(STRANGER, newer())),
        ("the key for provenance", signed_by(PROVENANCE, newer())),
        ("another key that says it is the right one", hint),
        ("two keys that are not trusted", both),
        ("no signature", unsigned(&real)),
        ("the signature of another goal", Envelope { signatures: other.signatures.clone(), ..real.clone() }),
        ("the payload of another goal", Envelope { payload: other.payload, ..real.clone() }),
        ("17 signatures, so that it is busy", many),
        ("a signature without end", long),
        ("an empty signature", with_signature(&real, Vec::clear)),
        ("half a signature", with_signature(&real, |sig| sig.truncate(32))),
        ("a signature and more", with_signature(&real, |sig| sig.push(0))),
        ("a signature of zeros", with_signature(&real, |sig| sig.fill(0))),
        ("a signature with its s made larger", with_signature(&real, |sig| add_order(sig))),
        ("the first byte changed", with_payload(&real, |payload| payload[0] ^= 1)),
        ("the schema changed", with_payload(&real, |payload| payload[4] ^= 1)),
        ("a byte in the middle changed", with_payload(&real, |payload| payload[length / 2] ^= 1)),
        ("the last byte changed", with_payload(&real, |payload| payload[length - 1] ^= 1)),
        ("the last byte missing", with_payload(&real, |payload| payload.truncate(payload.len() - 1))),
        ("a byte more", with_payload(&real, |payload| payload.push(0))),
        ("nothing in it", with_payload(&real, Vec::clear)),
        ("no base64", Envelope { payload: "%".repeat(100), ..real.clone() }),
        ("endless data", Envelope { payload: "A".repeat(GOAL.envelope_bytes_max() + 4), ..real.clone() }),
        ("endless data that is signed", sign(&GOAL, &vec![0; GOAL.payload_bytes_max + 1], &key(GOALS))),
        ("called something else", Envelope { payload_type: STATEMENT.payload_type.to_owned(), ..real.clone() }),
        ("signed as something else", other_kind.clone()),
        (
            "signed as something else, called a goal",
            Envelope { payload_type: GOAL.payload_type.to_owned(), ..other_kind },
        ),
        ("what is signed is of another topic", sign(&GOAL, &other_topic, &key(GOALS))),
        ("what is signed is no record", sign(&GOAL, b"{}", &key(GOALS))),
        ("what is signed has a byte too many", {
            let mut record = record(newer());
            record.push(0);
            sign(&GOAL, &record, &key(GOALS))
        }),
        ("another region's goal", signed(elsewhere)),
    ]
}

#[test]
fn no_forged_goal_is_taken() {
    let machine = Machine::new();
    assert!(machine.takes(&signed(goal((2, 3), "good"))));
    let attacks = forged();
    assert_eq!(attacks.len(), 31);
    for (what, envelope) in attacks {
        let error = machine.keeper.accept(&envelope, &region()).expect_err(what).to_string();
        assert!(!error.is_empty() && machine.held() == Some(goal((2, 3), "good")), "{what}");
    }
    // And every bit of the signature counts.
    for bit in 0..512 {
        let envelope = with_signature(&signed(goal((9, 1), "evil")), |sig| sig[bit / 8] ^= 1 << (bit % 8));
        assert!(!machine.takes(&envelope), "bit {bit}");
    }
    assert!(machine.takes(&signed(goal((9, 1), "good"))), "what is real is taken still");
}

/// Base64 has two alphabets, and an envelope room for more than one signature: what is kept is the same whichever came.
#[test]
fn whatever_form_a_goal_comes_in_the_agent_starts_again() {
    let machine = Machine::new();
    let mut envelope = signed(goal((2, 1), "good"));
    let stranger = signed_by(STRANGER, goal((2, 1), "good")).signatures[0].clone();
    envelope.signatures[0].keyid = "k".repeat(100_000);
    envelope.signatures.splice(0..0, vec![stranger; 10]);
    for text in [&mut envelope.payload, &mut envelope.signatures[10].sig] {
        *text = text.replace('+', "-").replace('/', "_");
    }
    assert!(machine.takes(&envelope));
    let machine = machine.restarted();
    assert_eq!(machine.held(), Some(goal((2, 1), "good")));
    machine.keeper.confirm(&web()).expect("believed");
    let kept = fs::metadata(machine.folder.path().join("goals.json")).expect("there").len();
    assert!(kept < 10_000, "{kept} bytes");
}

#[test]
fn nothing_that_was_signed_before_comes_back() {
    let machine = Machine::new();
    let seen = [(1, 1), (1, 2), (2, 1), (2, 2)].map(|version| signed(goal(version, "old")));
    for envelope in &seen {
        assert!(machine.takes(envelope));
    }
    assert!(machine.takes(&signed(goal((3, 1), "new"))));
    let machine = seen.iter().fold(machine, |machine, envelope| {
        assert!(!machine.takes(envelope), "rollback");
        let machine = machine.restarted();
        assert!(!machine.takes(envelope), "rollback after a restart");
        machine
    });
    assert!(!machine.takes(&signed(goal((3, 1), "new"))), "a replay");
    assert!(!machine.takes(&signed(goal((3, 1), "other"))), "two goals of one version");
    assert!(!machine.takes(&signed(goal((3, 0), "new"))) && !machine.takes(&signed(goal((2, 9), "new"))));
    assert_eq!(machine.held(), Some(goal((3, 1), "new")));
}

#[test]
fn keys_are_replaced_without_a_gap_and_a_key_that_goes_takes_its_word_along() {
    let machine = Machine::new();
    assert!(machine.takes(&signed(goal((1, 1), "one"))));
    machine.trusts(&[GOALS, STRANGER]);
    assert!(machine.takes(&signed_by(STRANGER, goal((2, 1), "two"))));
    assert!(machine.takes(&signed(goal((2, 2), "two"))));
    machine.trusts(&[STRANGER]);
    // What it signed is not acted on any more, and does not come again; what runs goes on.
    assert!(machine.keeper.confirm(&web()).is_err());
    assert!(machine.keeper.versions().is_empty(), "so the region gives it again");
    assert_eq!(machine.held(), Some(goal((2, 2), "two")));
    assert!(!machine.takes(&signed(goal((3, 1), "three"))));
    let machine = machine.restarted();
    assert_eq!(machine.held(), Some(goal((2, 2), "two")));
    assert!(!machine.takes(&signed_by(STRANGER, goal((2, 1), "two"))), "lower is lower, whoever signs");
    assert!(machine.takes(&signed_by(STRANGER, goal((2, 2), "two"))), "the same goal, signed anew");
    machine.keeper.confirm(&web()).expect("believed");
    assert!(!machine.takes(&signed_by(STRANGER, goal((2, 2), "other"))));
    for text in ["", "no key", &key(STRANGER).public().pem().repeat(17)] {
        fs::write(&machine.trust.goal_keys, text).expect("written");
        assert!(!machine.takes(&signed_by(STRANGER, goal((4, 1), "four"))), "no keys, no goals: {text:.20}");
        assert!(machine.trust.check().is_err());
    }
    fs::remove_file(&machine.trust.goal_keys).expect("there");
    assert!(!machine.takes(&signed_by(STRANGER, goal((4, 1), "four"))), "nor without a file");
}

#[test]
fn a_ledger_that_was_changed_is_not_acted_on() {
    let machine = Machine::new();
    assert!(machine.takes(&signed(goal((1, 1), "one"))));
    let file = machine.folder.path().join("goals.json");
    let text = fs::read_to_string(&file).expect("there");
    let evil = signed_by(STRANGER, goal((1, 1), "evil"));
    let payload = signed(goal((1, 1), "one")).payload;
    fs::write(&file, text.replace(&payload, &evil.payload)).expect("written");
    let machine = machine.restarted();
    assert!(machine.keeper.confirm(&web()).is_err(), "it is asked before anything is fetched or started");
    assert!(machine.takes(&signed(goal((1, 1), "one"))), "the region gives it again");
    machine.keeper.confirm(&web()).expect("believed");
}

fn origin() -> ArtifactOrigin {
    ArtifactOrigin { url: "https://ci.example/1".to_owned(), imported_by: "somebody".to_owned() }
}

fn statement(of: &str) -> Statement {
    imported(&ArtifactId::of(of.as_bytes()), "web", &origin(), Timestamp(0))
}

fn root(provenance: Option<Envelope>) -> ArtifactRoot {
    let json = json!({
        "artifact": ArtifactId::of(b"one").to_string(),
        "size_bytes": 0, "files": 0, "chunks": 0, "manifest": [], "layout": [], "packs": [],
    });
    let root = ArtifactRoot::from_json(&ArtifactId::of(b"one"), json.to_string().as_bytes()).expect("a root");
    ArtifactRoot { provenance, ..root }
}

#[test]
fn nothing_runs_whose_origin_nobody_trusted_says() {
    let machine = Machine::new();
    let real = statement("one").sign(&key(PROVENANCE));
    machine.trust.origin(&root(Some(real.clone()))).expect("whoever is trusted says it");
    let whole = serde_json::to_value(statement("one")).expect("JSON");
    let altered = |path: &str, value: serde_json::Value| {
        let mut statement = whole.clone();
        *statement.pointer_mut(path).expect("there") = value;
        statement.to_string().into_bytes()
    };
    let signed = |payload: &[u8]| Some(sign(&STATEMENT, payload, &key(PROVENANCE)));
    let two = json!([whole["subject"][0], whole["subject"][0]]);
    let mut renamed = sign(&GOAL, whole.to_string().as_bytes(), &key(PROVENANCE));
    renamed.payload_type = STATEMENT.payload_type.to_owned();
    let attacks = [
        ("none", None),
        ("a mix: another artifact's", Some(statement("two").sign(&key(PROVENANCE)))),
        ("a stranger's", Some(statement("one").sign(&key(STRANGER)))),
        ("signed with the key for goals", Some(statement("one").sign(&key(GOALS)))),
        ("signed as a goal", Some(sign(&GOAL, whole.to_string().as_bytes(), &key(PROVENANCE)))),
        ("signed as a goal, called provenance", Some(renamed)),
        ("not signed", Some(Envelope { signatures: Vec::new(), ..real.clone() })),
        ("altered", Some(with_payload(&real, |payload| payload[50] ^= 1))),
        ("of two artifacts", signed(&altered("/subject", two))),
        ("of none", signed(&altered("/subject", json!([])))),
        (
            "by another digest",
            signed(&altered("/subject/0/digest", json!({ "sha256": ArtifactId::of(b"one").to_string() }))),
        ),
        ("of another kind", signed(&altered("/predicateType", json!("https://example.com/other")))),
        ("endless", signed(&vec![b' '; STATEMENT.payload_bytes_max + 1])),
    ];
    for (what, provenance) in attacks {
        let error = machine.trust.origin(&root(provenance)).expect_err(what).to_string();
        assert!(error.contains("is not run"), "{what}: {error}");
    }
    let other: PathBuf = machine.trust.provenance_keys.clone();
    fs::write(&other, key(STRANGER).public().pem()).expect("written");
    machine.trust.origin(&root(Some(real))).expect_err("the key is trusted no longer");
}
