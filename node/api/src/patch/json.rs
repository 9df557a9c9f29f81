//! JSON patch: RFC 6902 operations at RFC 6901 pointers.

use serde_json::Value;

use super::{Budget, Error};
use crate::limits::JSON_PATCH_OPERATIONS_MAX;

pub(super) fn apply(object: &mut Value, patch: &Value, budget: &mut Budget) -> Result<(), Error> {
    let operations =
        patch.as_array().ok_or_else(|| Error::Malformed("a JSON patch is a list of operations".into()))?;
    if operations.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(Error::TooMuch);
    }
    for operation in operations {
        step(object, operation, budget)?;
    }
    Ok(())
}

fn step(object: &mut Value, operation: &Value, budget: &mut Budget) -> Result<(), Error> {
    let text = |field: &str| {
        let found = operation.get(field).and_then(Value::as_str);
        found.ok_or_else(|| Error::Malformed(format!("a JSON patch operation lacks {field:?}")))
    };
    let value = || {
        let found = operation.get("value");
        found.ok_or_else(|| Error::Malformed("a JSON patch operation lacks \"value\"".into()))
    };
    let path = Pointer::parse(text("path")?)?;
    match text("op")? {
        "add" => {
            budget.spend_on(value()?)?;
            path.add(object, value()?.clone(), budget)
        }
        "remove" => path.remove(object, budget).map(drop),
        "replace" => {
            budget.spend_on(value()?)?;
            *path.find_mut(object)? = value()?.clone();
            Ok(())
        }
        "move" => {
            let from = Pointer::parse(text("from")?)?;
            if path.steps.len() > from.steps.len() && path.steps.starts_with(&from.steps) {
                return Err(Error::Unfit(format!("cannot move {from} into itself")));
            }
            let moved = from.remove(object, budget)?;
            path.add(object, moved, budget)
        }
        "copy" => {
            let copied = Pointer::parse(text("from")?)?.find(object)?;
            budget.spend_on(copied)?;
            let copied = copied.clone();
            path.add(object, copied, budget)
        }
        "test" => {
            let found = path.find(object)?;
            budget.spend_on(found)?;
            if equal(found, value()?) {
                Ok(())
            } else {
                Err(Error::Unfit(format!("testing value {path} failed")))
            }
        }
        other => Err(Error::Malformed(format!("{other:?} is no operation of a JSON patch"))),
    }
}

/// Equality as RFC 6902 §4.6 has it: numbers by value.
fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(field, left)| right.get(field).is_some_and(|right| equal(left, right)))
        }
        (left, right) => left == right,
    }
}

/// A place in a document.
struct Pointer {
    steps: Vec<String>,
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.steps.iter().try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

impl Pointer {
    fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self { steps: Vec::new() });
        }
        let steps = text
            .strip_prefix('/')
            .ok_or_else(|| Error::Malformed(format!("the path {text:?} does not begin with a slash")))?;
        Ok(Self { steps: steps.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect() })
    }

    fn find<'v>(&self, document: &'v Value) -> Result<&'v Value, Error> {
        let found = self.steps.iter().try_fold(document, |value, step| match value {
            Value::Object(fields) => fields.get(step),
            Value::Array(elements) => elements.get(index(step)?),
            _ => None,
        });
        found.ok_or_else(|| self.missing())
    }

    fn find_mut<'v>(&self, document: &'v mut Value) -> Result<&'v mut Value, Error> {
        descend(document, &self.steps).ok_or_else(|| self.missing())
    }

    fn add(&self, document: &mut Value, value: Value, budget: &mut Budget) -> Result<(), Error> {
        let Some((last, parents)) = self.steps.split_last() else {
            *document = value;
            return Ok(());
        };
        match descend(document, parents) {
            Some(Value::Object(fields)) => {
                fields.insert(last.clone(), value);
                Ok(())
            }
            Some(Value::Array(elements)) => {
                let at = if last == "-" { Some(elements.len()) } else { index(last) };
                let at = at.filter(|at| *at <= elements.len()).ok_or_else(|| self.missing())?;
                budget.spend(1 + (elements.len() - at) / 64)?;
                elements.insert(at, value);
                Ok(())
            }
            _ => Err(self.missing()),
        }
    }

    fn remove(&self, document: &mut Value, budget: &mut Budget) -> Result<Value, Error> {
        let Some((last, parents)) = self.steps.split_last() else {
            return Ok(std::mem::take(document));
        };
        let removed = match descend(document, parents) {
            Some(Value::Object(fields)) => fields.remove(last),
            Some(Value::Array(elements)) => match index(last).filter(|at| *at < elements.len()) {
                Some(at) => {
                    budget.spend(1 + (elements.len() - at) / 64)?;
                    Some(elements.remove(at))
                }
                None => None,
            },
            _ => None,
        };
        removed.ok_or_else(|| self.missing())
    }

    fn missing(&self) -> Error {
        Error::Unfit(format!("the path \"{self}\" does not exist"))
    }
}

fn descend<'v>(document: &'v mut Value, steps: &[String]) -> Option<&'v mut Value> {
    steps.iter().try_fold(document, |value, step| match value {
        Value::Object(fields) => fields.get_mut(step),
        Value::Array(elements) => elements.get_mut(index(step)?),
        _ => None,
    })
}

/// An array's index: digits without a leading zero.
fn index(step: &str) -> Option<usize> {
    let plain = step == "0" || !step.starts_with(['0', '+']);
    if plain { step.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(object: Value, patch: Value) -> Result<Value, Error> {
        let mut object = object;
        apply(&mut object, &patch, &mut Budget::default()).map(|()| object)
    }

    #[test]
    fn each_operation_does_what_rfc_6902_says() {
        for (object, patch, expect) in [
            (
                json!({ "a": 1 }),
                json!([{ "op": "add", "path": "/b", "value": 2 }]),
                json!({ "a": 1, "b": 2 }),
            ),
            (
                json!({ "a": [1, 3] }),
                json!([{ "op": "add", "path": "/a/1", "value": 2 }]),
                json!({ "a": [1, 2, 3] }),
            ),
            (
                json!({ "a": [1] }),
                json!([{ "op": "add", "path": "/a/-", "value": 2 }]),
                json!({ "a": [1, 2] }),
            ),
            (json!({ "a": 1, "b": 2 }), json!([{ "op": "remove", "path": "/b" }]), json!({ "a": 1 })),
            (json!({ "a": [1, 2] }), json!([{ "op": "remove", "path": "/a/0" }]), json!({ "a": [2] })),
            (
                json!({ "a": 1 }),
                json!([{ "op": "replace", "path": "/a", "value": null }]),
                json!({ "a": null }),
            ),
            (json!({ "a": 1 }), json!([{ "op": "move", "from": "/a", "path": "/b" }]), json!({ "b": 1 })),
            (
                json!({ "a": { "x": 1 } }),
                json!([{ "op": "copy", "from": "/a", "path": "/b" }]),
                json!({ "a": { "x": 1 }, "b": { "x": 1 } }),
            ),
            (
                json!({ "a/b": { "~": 1 } }),
                json!([{ "op": "replace", "path": "/a~1b/~0", "value": 2 }]),
                json!({ "a/b": { "~": 2 } }),
            ),
            (json!({ "a": 1 }), json!([{ "op": "test", "path": "/a", "value": 1.0 }]), json!({ "a": 1 })),
        ] {
            assert_eq!(patched(object, patch.clone()), Ok(expect), "{patch}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let object = json!({ "a": [1], "b": { "c": 1 } });
        for patch in [
            json!([{ "op": "remove", "path": "/x" }]),
            json!([{ "op": "replace", "path": "/x", "value": 1 }]),
            json!([{ "op": "add", "path": "/a/2", "value": 1 }]),
            json!([{ "op": "add", "path": "/a/00", "value": 1 }]),
            json!([{ "op": "add", "path": "/x/y", "value": 1 }]),
            json!([{ "op": "test", "path": "/b", "value": {} }]),
            json!([{ "op": "move", "from": "/b", "path": "/b/c" }]),
        ] {
            assert!(matches!(patched(object.clone(), patch.clone()), Err(Error::Unfit(_))), "{patch}");
        }
        for patch in [
            json!({}),
            json!([{}]),
            json!([{ "op": "x", "path": "" }]),
            json!([{ "op": "add", "path": "a", "value": 1 }]),
        ] {
            assert!(matches!(patched(object.clone(), patch.clone()), Err(Error::Malformed(_))), "{patch}");
        }
    }

    #[test]
    fn a_patch_that_doubles_the_object_with_each_step_runs_out_of_budget() {
        let copies: Vec<Value> =
            (0..64).map(|n| json!({ "op": "copy", "from": "", "path": format!("/{n}") })).collect();
        assert_eq!(patched(json!({ "a": 1 }), copies.into()), Err(Error::TooMuch));
    }
}
