//! Which nodes are meant: `zone=eu-a,status=failed,version<7`.

use longshore_fleet::tables::{Node, Status};
use longshore_schemas::{
    LabelName, ServiceName,
    events::GoalVersion,
    http::{NODE_KEYS, NODE_WHERE_MAX},
    read::ReadError,
};

const LABEL: &str = "label.";

/// All of these hold.
#[derive(Debug, Default)]
pub(super) struct Filter(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    key: Key,
    is: Is,
    value: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Key {
    Node,
    Zone,
    Rack,
    Host,
    Agent,
    Label(String),
    Lost,
    Status,
    Artifact,
    Version,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    Equal,
    Not,
    Below,
}

impl Filter {
    pub(super) fn parse(text: Option<&str>) -> Result<Self, ReadError> {
        let Some(text) = text else { return Ok(Self::default()) };
        let conditions = text.split(',').map(condition).collect::<Result<Vec<_>, _>>()?;
        if conditions.len() > NODE_WHERE_MAX {
            return Err(ReadError::Invalid(format!("where: give at most {NODE_WHERE_MAX} conditions")));
        }
        Ok(Self(conditions))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the node is meant: what is asked of a service must hold of one and the same of these.
    pub(super) fn fits(&self, node: &Node, statuses: &[(ServiceName, Status)]) -> bool {
        let (of_service, of_node): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|condition| condition.key.is_of_service());
        of_node.iter().all(|condition| condition.fits_node(node))
            && (of_service.is_empty()
                || statuses.iter().any(|(_, status)| of_service.iter().all(|condition| condition.fits_status(status))))
    }
}

impl Key {
    fn is_of_service(&self) -> bool {
        matches!(self, Self::Status | Self::Artifact | Self::Version)
    }
}

fn condition(text: &str) -> Result<Condition, ReadError> {
    let invalid = |what: &str| ReadError::Invalid(format!("where: {text:?} {what}"));
    let at = text
        .find(['=', '!', '<'])
        .ok_or_else(|| invalid("is no condition: write KEY=VALUE, KEY!=VALUE or version<N"))?;
    let (key, rest) = text.split_at(at);
    let (is, value) = match rest.strip_prefix("!=") {
        Some(value) => (Is::Not, value),
        None if rest.starts_with('<') => (Is::Below, &rest[1..]),
        None => (Is::Equal, rest.strip_prefix('=').ok_or_else(|| invalid("has a ! without a ="))?),
    };
    let key = match key.trim() {
        "node" => Key::Node,
        "zone" => Key::Zone,
        "rack" => Key::Rack,
        "host" => Key::Host,
        "agent" => Key::Agent,
        "lost" => Key::Lost,
        "status" => Key::Status,
        "artifact" => Key::Artifact,
        "version" => Key::Version,
        key if key.strip_prefix(LABEL).is_some_and(|name| name.parse::<LabelName>().is_ok()) => {
            Key::Label(key[LABEL.len()..].to_owned())
        }
        _ => return Err(invalid(&format!("has a key that nodes do not have: use {}", NODE_KEYS.join(", ")))),
    };
    let value = value.trim();
    let is_right = match key {
        Key::Lost => matches!(value, "true" | "false") && is != Is::Below,
        Key::Version => version(value).is_some(),
        _ => !value.is_empty() && is != Is::Below,
    };
    if !is_right {
        return Err(invalid(
            "cannot be: lost is true or false; a version is 7 or 7.2, and only it can be below another",
        ));
    }
    Ok(Condition { key, is, value: value.to_owned() })
}

/// `7` is all of revision 7, `7.2` one step of it.
fn version(text: &str) -> Option<(u64, Option<u32>)> {
    match text.split_once('.') {
        Some((revision, step)) => Some((revision.parse().ok()?, Some(step.parse().ok()?))),
        None => Some((text.parse().ok()?, None)),
    }
}

impl Condition {
    fn holds(&self, is_equal: bool) -> bool {
        is_equal == (self.is == Is::Equal)
    }

    fn fits_node(&self, node: &Node) -> bool {
        let Node { description, lost, .. } = node;
        let text = match &self.key {
            Key::Node => description.node.as_str(),
            Key::Zone => description.zone.as_str(),
            Key::Rack => description.rack.as_str(),
            Key::Host => &description.host,
            Key::Agent => &description.agent_version,
            // Without the label it is not equal to any value.
            Key::Label(name) => description.labels.get(name).map_or("", String::as_str),
            Key::Lost => return self.holds((self.value == "true") == *lost),
            Key::Status | Key::Artifact | Key::Version => return false,
        };
        self.holds(text == self.value)
    }

    fn fits_status(&self, status: &Status) -> bool {
        match self.key {
            Key::Status => self.holds(word(&format!("{:?}", status.status)) == word(&self.value)),
            Key::Artifact => {
                self.holds(status.artifact().is_some_and(|artifact| artifact.to_string().starts_with(&self.value)))
            }
            Key::Version => {
                let Some((revision, step)) = version(&self.value) else { return false };
                let found = status.version;
                match self.is {
                    Is::Below => found < GoalVersion { revision, step: step.unwrap_or_default() },
                    _ => self.holds(found.revision == revision && step.is_none_or(|step| found.step == step)),
                }
            }
            _ => false,
        }
    }
}

/// `RolledBack`, `rolled-back` and `rolled back` are one.
fn word(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use longshore_schemas::{
        ArtifactId, Timestamp,
        events::{NodeDescription, NodeStatus},
    };

    use super::*;

    #[test]
    fn nodes_are_chosen_by_what_they_are_and_what_they_run() {
        let description = NodeDescription {
            node: "eu-1".parse().expect("valid"),
            zone: "a".parse().expect("valid"),
            rack: "r1".parse().expect("valid"),
            host: "h".to_owned(),
            agent_version: "0.1.0".to_owned(),
            labels: [("gpu".to_owned(), "a100".to_owned())].into(),
        };
        let node = Node { description, lost: false, at: Timestamp(0), described_at: Timestamp(0) };
        let status = |status, revision| {
            let version = GoalVersion { revision, step: 2 };
            Status::new(version, Some(ArtifactId::of(b"a")), status, 0, None, Timestamp(0))
        };
        let name = |name: &str| name.parse::<ServiceName>().expect("valid");
        let statuses =
            [(name("web"), status(NodeStatus::Healthy, 7)), (name("mail"), status(NodeStatus::RolledBack, 3))];
        let short = &ArtifactId::of(b"a").to_string()[..6];
        let table = [
            ("zone=a", true),
            ("zone=b", false),
            ("zone!=b,rack=r1", true),
            ("zone=a,rack!=r1", false),
            ("node=eu-1,host=h,agent=0.1.0,lost=false", true),
            ("label.gpu=a100", true),
            ("label.gpu=h100", false),
            ("label.gpu!=h100,label.disk!=nvme", true),
            ("label.disk=nvme", false),
            ("lost=true", false),
            ("lost!=true", true),
            ("status=healthy", true),
            ("status=rolled-back", true),
            ("status=failed", false),
            ("status=healthy,version=7", true),
            ("status=healthy,version=7.2", true),
            ("status=healthy,version=7.1", false),
            ("status=healthy,version=3", false),
            ("version<7", true),
            ("status=healthy,version<7", false),
            ("version<7.3,status=healthy", true),
            (&format!("artifact={short}"), true),
            (&format!("artifact!={short}"), false),
        ];
        for (text, expected) in table {
            let filter = Filter::parse(Some(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.fits(&node, &statuses), expected, "{text}");
        }
        assert!(Filter::parse(None).expect("valid").fits(&node, &[]));
        assert!(!Filter::parse(Some("status=healthy")).expect("valid").fits(&node, &[]), "it runs nothing");
    }

    #[test]
    fn what_cannot_be_asked_says_what_can() {
        for text in [
            "",
            "zone",
            "zone=",
            "color=red",
            "label.=x",
            "label.gpu<a",
            "gpu=a100",
            "lost=maybe",
            "version=x",
            "zone<a",
            "version<",
            "zone!a",
            "zone=a,",
        ] {
            let error = Filter::parse(Some(text)).expect_err(text).to_string();
            assert!(error.contains("where"), "{error}");
        }
        let many = vec!["zone=a"; NODE_WHERE_MAX + 1].join(",");
        Filter::parse(Some(&many)).expect_err("too many");
    }
}
