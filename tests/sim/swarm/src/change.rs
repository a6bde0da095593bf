//! One field of a scenario, changed by its name.

use serde_json::Value;

use crate::scenario::{Error, Scenario};

/// Stands for `pack_bytes`, as what people think of.
const PACKS: &str = "packs";

impl Scenario {
    /// The same with another value of a field, as JSON; text needs no quotes. A field of an object within is named with its place,
    /// `churn.fraction`, and `packs` cuts the artifact as it is then into so many. Whether all fields go together is looked at when it runs.
    pub fn with(self, field: &str, value: &str) -> Result<Self, Error> {
        let refused =
            |reason: serde_json::Error| Error::Value { field: field.to_owned(), value: value.to_owned(), reason };
        if field == PACKS {
            return Ok(self.with_packs(serde_json::from_str(value).map_err(refused)?));
        }
        let mut json = serde_json::to_value(&self)?;
        let names = names(&json);
        let place = json.pointer_mut(&format!("/{}", field.replace('.', "/")));
        let Some(place) = place.filter(|_| !field.is_empty()) else {
            return Err(Error::Unknown { field: field.to_owned(), names });
        };
        *place = match serde_json::from_str(value) {
            Ok(value) => value,
            Err(_) if place.is_string() => Value::String(value.to_owned()),
            Err(reason) => return Err(refused(reason)),
        };
        serde_json::from_value(json).map_err(refused)
    }
}

/// Every field, those of objects within with their place.
fn names(scenario: &Value) -> String {
    let mut names = vec![PACKS.to_owned()];
    for (name, value) in scenario.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(within) => names.extend(within.keys().map(|inner| format!("{name}.{inner}"))),
            None => names.push(name.clone()),
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_changed_by_its_name() {
        let scenario = Scenario::default();
        let change = |field, value| scenario.clone().with(field, value).expect("a field and its value");
        assert_eq!(change("nodes", "7").nodes, 7);
        assert_eq!(change("name", "mine").name, "mine");
        assert_eq!(change("name", "\"mine\"").name, "mine");
        assert_eq!(change("churn.fraction", "0.25").churn.fraction, 0.25);
        assert_eq!(change("node_disk_bytes_per_second", "2e9").node_disk_bytes_per_second, Some(2e9));
        assert_eq!(change("rack_up_bits_per_second", "null").rack_up_bits_per_second, None);
        assert_eq!(
            change("bucket_away", r#"{"from_seconds": 1}"#).bucket_away.map(|span| span.from_seconds),
            Some(1.0)
        );
        assert_eq!(change("packs", "16").packs(), 16);
        // Together they make sense, whichever comes first.
        assert!(change("nodes", "2000000").with("packs", "8").expect("known").check().is_ok());
    }

    #[test]
    fn a_change_that_cannot_be_is_named_together_with_what_to_do() {
        let table = [
            ("node_gbits", "25", "no field `node_gbits`; take one of packs, "),
            ("churn.share", "0.1", "no field `churn.share`; take one of packs, "),
            ("", "1", "no field ``"),
            ("nodes", "many", "the scenario's field `nodes` cannot be `many`"),
            ("nodes", "-1", "the scenario's field `nodes` cannot be `-1`"),
            ("nodes", "", "the scenario's field `nodes` cannot be ``"),
            ("packs", "few", "the scenario's field `packs` cannot be `few`"),
            ("bucket_away", "3", "the scenario's field `bucket_away` cannot be `3`"),
        ];
        for (field, value, expected) in table {
            let error = Scenario::default().with(field, value).expect_err(field).to_string();
            assert!(error.contains(expected), "{field}={value}: {error}");
        }
        let error = Scenario::default().with("x", "1").expect_err("unknown").to_string();
        assert!(error.contains("nodes") && error.contains("churn.fraction") && !error.contains("churn,"), "{error}");
    }
}
