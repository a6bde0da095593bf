//! Files that people and earlier runs left: settings, ledgers, token lists, keys; and credentials, which strangers send.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use longshore_node::{goals::GoalKeeper, trust::Trust};
use longshore_schemas::{
    Timestamp, codec,
    events::{GoalState, RegionalGoal, Request},
};
use longshore_service::{
    config::{self, Sources},
    ledger::Ledger,
    signed::Signer,
    tokens::Tokens,
};
use longshore_signing::{SigningKey, goal::GOAL};
use serde::Deserialize;
use serde_json::{Value, json};

use super::frames::break_value;
use crate::{Random, Subject, kind_of};

/// A folder in memory where there is one: syncing costs nothing there.
pub(super) fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder")
}

/// The first byte says what the rest is.
struct Files {
    folder: tempfile::TempDir,
    trust: Trust,
    /// A goal that is believed.
    goal: Value,
}

pub(super) fn files() -> Box<dyn Subject> {
    let folder = scratch();
    let key = SigningKey::from_seed(&[1; 32]);
    let keys = folder.path().join("keys.pub");
    std::fs::write(&keys, key.public().pem()).expect("written");
    let run = json!({ "command": ["./web"] });
    let target = json!({
        "cohort": { "zones": [], "fraction_bp": 10000 }, "revision": 2, "artifact": "0".repeat(64), "run": run,
    });
    let goal = json!({
        "region": "eu", "service": "web", "version": { "revision": 2, "step": 1 }, "targets": [target],
    });
    let goal: RegionalGoal = serde_json::from_value(goal).expect("a goal");
    let id = "goal-1".parse().expect("valid");
    let event = GoalState::from(goal);
    let request = Request { id, at: Timestamp(0), actor: "goals".to_owned(), trace: None, report: None, event };
    let record = codec::encode(&request).expect("encodes");
    let goal = serde_json::to_value(longshore_signing::sign(&GOAL, &record, &key)).expect("JSON");
    Box::new(Files { folder, trust: Trust { goal_keys: keys.clone(), provenance_keys: keys }, goal })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(dead_code, reason = "that it can be read is the point")]
#[derive(Default)]
struct Settings {
    listen: String,
    regions: Vec<String>,
    limits: BTreeMap<String, u32>,
}

impl Subject for Files {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let (kind, content) = input.split_first().unwrap_or((&b'g', b""));
        let path = self.folder.path().join("file");
        std::fs::write(&path, content).map_err(|error| error.to_string())?;
        let outcome = match kind {
            b'g' => GoalKeeper::open(&path, self.trust.clone())
                .map(|goals| format!("{} goals", goals.versions().len()))
                .map_err(|e| kind_of(&e)),
            b'p' => ports(&path),
            b't' => {
                Tokens::load(&path).map(|tokens| format!("{} tokens", tokens.records().len())).map_err(|e| kind_of(&e))
            }
            b'k' => Signer::load_or_create(&path).map(|_| "a key".to_owned()).map_err(|e| kind_of(&e)),
            _ => settings(&path, content),
        };
        let name = path.display().to_string();
        let _ = std::fs::remove_file(&path);
        // Where it cannot be read, it says so with the file's name, which kinds leave out.
        Ok(outcome.unwrap_or_else(|kind| kind).replace(&name, ""))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let id = "0".repeat(64);
        let (kind, mut content) = match random.below(5) {
            0 => (b'g', json!({ "generation": 3, "content": { "web": self.goal } })),
            1 => (b'p', json!({ "generation": 3, "content": { "eu": "127.0.0.1:4000", "us": "[::1]:1" } })),
            2 => (b't', json!([{ "subject": "ada", "role": "admin", "hash": id }])),
            3 => (b'k', json!(id)),
            _ => return b"slisten = \"a:1\"\nregions = [\"eu\"]\n[limits]\nstreams_max = 5\n".to_vec(),
        };
        if random.one_in(2) {
            break_value(&mut content, random);
        }
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        [&[kind], text.as_bytes()].concat()
    }

    fn tokens(&self) -> &'static [&'static str] {
        &[
            "[[",
            "]]",
            "a.b.c = 1\n",
            "\"\"\"",
            "1979-05-27T07:32:00Z",
            "{",
            "[limits]\n",
            "inf",
            "0x7fffffffffffffff",
            "null",
        ]
    }
}

fn ports(path: &PathBuf) -> Result<String, String> {
    let ledger = Ledger::open(path, BTreeMap::<String, SocketAddr>::new());
    ledger.map(|ports| format!("{} ports", ports.content().len())).map_err(|error| kind_of(&error))
}

/// The file as settings, and its text as a variable and as a flag.
fn settings(path: &std::path::Path, content: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(content).into_owned();
    let file = Sources { file: Some(path.to_owned()), ..Sources::default() };
    let flags = Sources {
        file: None,
        keys: vec!["listen", "limits.some"],
        flags: vec![("regions", text.clone())],
        set: Vec::new(),
    };
    let read = config::load_with::<Settings>(&file, |_| None).map(|_| "settings".to_owned());
    let given = config::load_with::<Settings>(&flags, |_| Some(text.clone())).map(|_| "given".to_owned());
    let kind = |result: Result<String, longshore_service::Error>| result.unwrap_or_else(|error| kind_of(&error));
    Ok(format!("{} / {}", kind(read), kind(given)))
}

struct Credentials {
    signer: Signer,
    tokens: Tokens,
    token: String,
}

type Payload = (String, u32);

pub(super) fn credentials() -> Box<dyn Subject> {
    let (token, record) = longshore_service::tokens::generate("ada", longshore_schemas::http::Role::Admin);
    Box::new(Credentials { signer: Signer::new([1; 32]), tokens: Tokens::new(vec![record]), token })
}

impl Subject for Credentials {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let text = String::from_utf8_lossy(input);
        if self.tokens.verify(&text).is_some() && text != self.token {
            return Err("another token is taken for a known one".to_owned());
        }
        let carried = self.signer.verify::<Payload>(&text);
        match &carried {
            Some(payload) if *text != self.signed(payload) => Err("a credential has two spellings".to_owned()),
            Some(_) => Ok("signed".to_owned()),
            None => Ok(format!("refused, {} dots", text.matches('.').count().min(3))),
        }
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        // Only this one: whatever else verifies was not signed here.
        let payload = ("default-17".to_owned(), random.below(3) as u32);
        self.signed(&payload).into_bytes()
    }
}

impl Credentials {
    fn signed(&self, payload: &Payload) -> String {
        self.signer.sign(payload).expect("it is JSON")
    }
}
