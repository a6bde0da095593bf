//! How a request proves who sent it: the header `auth`.
//!
//! ```text
//!   auth: 1 region/eu 5f0c9a1e 9b2d…(64 digits)
//!         │     │        │         └ BLAKE3 of topic, key and value, keyed with the sender's key
//!         │     │        └ which of the sender's keys
//!         │     └ control (the API and the processors), or a region
//!         └ the format
//! ```
//!
//! Brokers tell those who read no principal: without this, whoever may write to a topic could speak for workers and regions.
//! So every request but `BuildRequested` carries one, and the processor that takes the request checks it first: that the
//! sender made it for this topic and key, and that this sender may say this ([`Speaker`]). It is a keyed hash and no
//! signature, because those who check are the control nodes alone: a region holds its own key, they hold all.
//!
//! A sender may have several keys, so that one can follow another: new ones are made known everywhere before one signs.
//!
//! Not known here: files, and where a header stands in a record.

use std::{collections::BTreeMap, fmt};

use crate::{RegionName, events::ReportOrder};

/// The header's name.
pub const AUTH: &str = "auth";

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

const FORMAT: &str = "1";
/// Sets these keys apart from whatever else is derived from the same secret.
const CONTEXT: &str = "longshore 2026 signed requests";
const KEY_ID_DIGITS: usize = 8;
const REGION: &str = "region/";

/// Who can sign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// The API, for people and workers, and the processors among themselves.
    Control,
    Region(RegionName),
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Region(region) => write!(f, "{REGION}{region}"),
        }
    }
}

/// Who may say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker<'a> {
    /// Whom the brokers let write to the topic.
    Anyone,
    Control,
    /// This region, and only under its own name.
    Region(&'a RegionName),
}

/// What is signed, as it stands on its topic.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    pub topic: &'a str,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("it has no header {AUTH:?}, and only builds may be requested without")]
    Missing,
    #[error("its header {AUTH:?} is not of the form: {FORMAT} sender key-id hash, once")]
    Malformed,
    #[error("nobody here knows the key {id} of {sender}")]
    UnknownKey { sender: String, id: String },
    #[error("its header {AUTH:?} was not made by {sender} for this topic, key and content")]
    Wrong { sender: String },
    #[error("{sender} may not speak for {spoken_for}")]
    Foreign { sender: String, spoken_for: String },
}

impl Untrusted {
    /// In a word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownKey { .. } => "unknown-key",
            Self::Wrong { .. } => "wrong",
            Self::Foreign { .. } => "foreign",
        }
    }
}

/// One key of one sender.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestKey {
    sender: Sender,
    /// The sender as it stands in the header.
    name: String,
    id: String,
    key: [u8; SECRET_BYTES],
}

impl RequestKey {
    /// The sender is part of the key: the same secret given to two of them makes two keys.
    pub fn new(sender: Sender, secret: &[u8; SECRET_BYTES]) -> Self {
        let name = sender.to_string();
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(secret);
        hasher.update(name.as_bytes());
        let key = *hasher.finalize().as_bytes();
        let id = blake3::hash(&key).to_hex()[..KEY_ID_DIGITS].to_owned();
        Self { sender, name, id, key }
    }

    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The header's value.
    pub fn sign(&self, what: Signed<'_>) -> String {
        let Self { name, id, .. } = self;
        format!("{FORMAT} {name} {id} {}", self.hash(what).to_hex())
    }

    fn hash(&self, Signed { topic, key, value }: Signed<'_>) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [topic.as_bytes(), key] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(value);
        hasher.finalize()
    }
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestKey({} {}, key hidden)", self.name, self.id)
    }
}

/// The keys that are believed, by their ids.
#[derive(Debug, Clone, Default)]
pub struct KnownKeys(BTreeMap<String, RequestKey>);

impl KnownKeys {
    pub fn new(keys: impl IntoIterator<Item = RequestKey>) -> Self {
        Self(keys.into_iter().map(|key| (key.id.clone(), key)).collect())
    }

    /// Whether `auth`, the record's headers of that name, shows that whom `speaker` names sent this; `report` is the place
    /// that the request claims in its sender's order.
    pub fn check<'h>(
        &self,
        speaker: Speaker<'_>,
        report: Option<&ReportOrder>,
        auth: impl IntoIterator<Item = &'h [u8]>,
        what: Signed<'_>,
    ) -> Result<(), Untrusted> {
        if speaker == Speaker::Anyone {
            return Ok(());
        }
        let mut headers = auth.into_iter();
        let header = headers.next().ok_or(Untrusted::Missing)?;
        if headers.next().is_some() {
            return Err(Untrusted::Malformed);
        }
        let sender = self.verify(header, what)?;
        may_speak(sender, speaker, report)
    }

    /// Who made this header for this.
    fn verify(&self, header: &[u8], what: Signed<'_>) -> Result<&Sender, Untrusted> {
        let text = std::str::from_utf8(header).map_err(|_| Untrusted::Malformed)?;
        let mut words = text.split(' ');
        let (Some(FORMAT), Some(name), Some(id), Some(hash), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Untrusted::Malformed);
        };
        let hash = blake3::Hash::from_hex(hash).map_err(|_| Untrusted::Malformed)?;
        if name.len() > REGION.len() + crate::NAME_BYTES_MAX || id.len() != KEY_ID_DIGITS {
            return Err(Untrusted::Malformed);
        }
        let Some(key) = self.0.get(id).filter(|key| key.name == name) else {
            return Err(Untrusted::UnknownKey { sender: name.to_owned(), id: id.to_owned() });
        };
        // Hashes are compared in constant time.
        if key.hash(what) == hash { Ok(&key.sender) } else { Err(Untrusted::Wrong { sender: name.to_owned() }) }
    }
}

fn may_speak(sender: &Sender, speaker: Speaker<'_>, report: Option<&ReportOrder>) -> Result<(), Untrusted> {
    let foreign = |spoken_for: String| Err(Untrusted::Foreign { sender: sender.to_string(), spoken_for });
    match (speaker, sender) {
        (Speaker::Anyone, _) | (Speaker::Control, Sender::Control) => Ok(()),
        (Speaker::Control, Sender::Region(_)) => foreign(Sender::Control.to_string()),
        (Speaker::Region(region), Sender::Region(own)) if region == own => match report {
            // Another's order, taken to its end, would silence that other for ever.
            Some(order) if !is_own_order(&order.sender, own) => foreign(order.sender.clone()),
            Some(_) => Ok(()),
            None => foreign("people, whose requests have no order".to_owned()),
        },
        (Speaker::Region(region), _) => foreign(format!("{REGION}{region}")),
    }
}

/// A region's name, or one of several processes of that region: `region/eu/2`.
fn is_own_order(sender: &str, region: &RegionName) -> bool {
    let rest = sender.strip_prefix(REGION).and_then(|rest| rest.strip_prefix(region.as_str()));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str) -> RegionName {
        name.parse().expect("a region")
    }

    fn key(sender: Sender) -> RequestKey {
        RequestKey::new(sender, &[7; SECRET_BYTES])
    }

    fn eu() -> Sender {
        Sender::Region(region("eu"))
    }

    fn order(sender: &str) -> ReportOrder {
        ReportOrder { sender: sender.to_owned(), boot: 1, sequence: 1 }
    }

    const WHAT: Signed<'static> = Signed { topic: "fleet-reports", key: b"eu/0", value: b"value" };

    #[test]
    fn only_the_sender_for_this_topic_key_and_value_is_believed() {
        let known = KnownKeys::new([key(eu()), key(Sender::Control)]);
        let (eu_name, us_name) = (region("eu"), region("us"));
        let header = key(eu()).sign(WHAT);
        let own = order("region/eu");
        let check = |speaker, report: Option<&ReportOrder>, header: &str, what| {
            known.check(speaker, report, [header.as_bytes()], what).map_err(|untrusted| untrusted.word())
        };
        let me = Speaker::Region(&eu_name);
        assert_eq!(check(me, Some(&own), &header, WHAT), Ok(()));
        assert_eq!(check(me, Some(&order("region/eu/2")), &header, WHAT), Ok(()));

        for what in [
            Signed { topic: "artifact-requests", ..WHAT },
            Signed { key: b"eu/1", ..WHAT },
            Signed { value: b"values", ..WHAT },
            // A byte that moves from one part to the next.
            Signed { topic: "fleet-report", key: b"seu/0", ..WHAT },
        ] {
            assert_eq!(check(me, Some(&own), &header, what), Err("wrong"), "{what:?}");
        }
        let foreign = [
            (Speaker::Region(&us_name), Some(&own)),
            (Speaker::Control, Some(&own)),
            (me, None),
            (me, Some(&order("queue-0"))),
            (me, Some(&order("region/eu2"))),
            (me, Some(&order("region/us"))),
        ]
        .map(|(speaker, report)| check(speaker, report, &header, WHAT));
        assert_eq!(foreign, [Err("foreign"); 6]);
        let by_control = key(Sender::Control).sign(WHAT);
        assert_eq!(check(me, Some(&own), &by_control, WHAT), Err("foreign"), "control is no region");
        assert_eq!(check(Speaker::Control, None, &by_control, WHAT), Ok(()));
        assert_eq!(check(Speaker::Anyone, None, "", WHAT), Ok(()), "the broker decides who may");

        let stranger = RequestKey::new(eu(), &[8; SECRET_BYTES]).sign(WHAT);
        assert_eq!(check(me, Some(&own), &stranger, WHAT), Err("unknown-key"));
        // The id is known, the name beside it is another's.
        let renamed = header.replace("region/eu", "control");
        assert_eq!(check(Speaker::Control, None, &renamed, WHAT), Err("unknown-key"));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let known = KnownKeys::new([key(Sender::Control)]);
        let check = |headers: &[&[u8]]| {
            let checked = known.check(Speaker::Control, None, headers.iter().copied(), WHAT);
            checked.map_err(|untrusted| untrusted.word())
        };
        let good = key(Sender::Control).sign(WHAT);
        assert_eq!(check(&[good.as_bytes()]), Ok(()));
        assert_eq!(check(&[]), Err("missing"));
        assert_eq!(check(&[good.as_bytes(), good.as_bytes()]), Err("malformed"));
        let long = format!("1 {} 00000000 {}", "x".repeat(100_000), "0".repeat(64));
        let cut = &good[..good.len() - 1];
        let spaced = format!("{good} ");
        for bad in ["", "1", &good[2..], &format!("2{}", &good[1..]), &spaced, cut, &long, "1 control 0 0"] {
            assert_eq!(check(&[bad.as_bytes()]), Err("malformed"), "{bad}");
        }
        assert_eq!(check(&[b"\xff\xfe"]), Err("malformed"));
        let flipped = good.replace(&good[good.len() - 1..], if good.ends_with('0') { "1" } else { "0" });
        assert!(check(&[flipped.as_bytes()]).is_err());
    }

    #[test]
    fn keys_follow_one_another() {
        let (old, new) = (key(Sender::Control), RequestKey::new(Sender::Control, &[9; SECRET_BYTES]));
        let both = KnownKeys::new([old.clone(), new.clone()]);
        for one in [&old, &new] {
            assert_eq!(both.check(Speaker::Control, None, [one.sign(WHAT).as_bytes()], WHAT), Ok(()));
        }
        let later = KnownKeys::new([new]);
        assert!(later.check(Speaker::Control, None, [old.sign(WHAT).as_bytes()], WHAT).is_err());
        assert_eq!(format!("{old:?}"), format!("RequestKey(control {}, key hidden)", old.id()));
    }
}
