//! The document of version 2 in protobuf, the only form that kubectl before 1.27 can read: the message
//! `Document` of the package `openapi.v2` of gnostic. Field numbers are facts of that format.

use serde_json::Value;

/// The media type's document from the one in JSON.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, 1, &document["swagger"]);
    put(&mut out, 2, |out| {
        put_text(out, 1, &document["info"]["title"]);
        put_text(out, 2, &document["info"]["version"]);
    });
    put(&mut out, 8, |out| {
        for (path, item) in fields(&document["paths"]) {
            put_named(out, 2, path, |out| path_item(out, item));
        }
    });
    put(&mut out, 9, |out| named_schemas(out, &document["definitions"]));
    out
}

fn path_item(out: &mut Vec<u8>, item: &Value) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item[method].is_object() {
            put(out, number, |out| operation(out, &item[method]));
        }
    }
    parameters(out, 9, &item["parameters"]);
}

fn operation(out: &mut Vec<u8>, operation: &Value) {
    put_text(out, 5, &operation["operationId"]);
    for (number, list) in [(6, "produces"), (7, "consumes")] {
        elements(&operation[list]).iter().for_each(|text| put_text(out, number, text));
    }
    parameters(out, 8, &operation["parameters"]);
    put(out, 9, |out| {
        for (code, response) in fields(&operation["responses"]) {
            put_named(out, 1, code, |out| {
                put(out, 1, |out| {
                    put_text(out, 1, &response["description"]);
                    if response["schema"].is_object() {
                        put(out, 2, |out| put(out, 1, |out| schema(out, &response["schema"])));
                    }
                });
            });
        }
    });
    extensions(out, 13, operation);
}

fn parameters(out: &mut Vec<u8>, number: u32, parameters: &Value) {
    for parameter in elements(parameters) {
        put(out, number, |out| {
            put(out, 1, |out| match parameter["in"].as_str() {
                Some("body") => put(out, 1, |out| {
                    put_text(out, 2, &parameter["name"]);
                    put_text(out, 3, &parameter["in"]);
                    put_flag(out, 4, &parameter["required"]);
                    put(out, 5, |out| schema(out, &parameter["schema"]));
                }),
                place => {
                    // A parameter of the query may be empty, so its type stands one further than a path's.
                    let (which, type_) = if place == Some("path") { (4, 5) } else { (3, 6) };
                    put(out, 2, |out| {
                        put(out, which, |out| {
                            put_flag(out, 1, &parameter["required"]);
                            put_text(out, 2, &parameter["in"]);
                            put_text(out, 4, &parameter["name"]);
                            put_text(out, type_, &parameter["type"]);
                        });
                    });
                }
            });
        });
    }
}

fn schema(out: &mut Vec<u8>, held: &Value) {
    put_text(out, 1, &held["$ref"]);
    put_text(out, 2, &held["format"]);
    put_text(out, 4, &held["description"]);
    elements(&held["required"]).iter().for_each(|name| put_text(out, 19, name));
    if held["additionalProperties"].is_object() {
        put(out, 21, |out| put(out, 1, |out| schema(out, &held["additionalProperties"])));
    }
    if held["type"].is_string() {
        put(out, 22, |out| put_text(out, 1, &held["type"]));
    }
    if held["items"].is_object() {
        put(out, 23, |out| put(out, 1, |out| schema(out, &held["items"])));
    }
    if held["properties"].is_object() {
        put(out, 25, |out| named_schemas(out, &held["properties"]));
    }
    extensions(out, 31, held);
}

fn named_schemas(out: &mut Vec<u8>, schemas: &Value) {
    for (name, held) in fields(schemas) {
        put_named(out, 1, name, |out| schema(out, held));
    }
}

/// What begins with `x-`, each as a text of YAML: JSON is one.
fn extensions(out: &mut Vec<u8>, number: u32, held: &Value) {
    for (name, value) in fields(held).filter(|(name, _)| name.starts_with("x-")) {
        put_named(out, number, name, |out| put_bytes(out, 2, value.to_string().as_bytes()));
    }
}

/// A name and what it stands for: how this format writes maps.
fn put_named(out: &mut Vec<u8>, number: u32, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    put(out, number, |out| {
        put_bytes(out, 1, name.as_bytes());
        put(out, 2, value);
    });
}

fn put(out: &mut Vec<u8>, number: u32, content: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    content(&mut inner);
    put_bytes(out, number, &inner);
}

fn put_text(out: &mut Vec<u8>, number: u32, text: &Value) {
    if let Some(text) = text.as_str() {
        put_bytes(out, number, text.as_bytes());
    }
}

fn put_flag(out: &mut Vec<u8>, number: u32, flag: &Value) {
    if flag.as_bool() == Some(true) {
        put_number(out, u64::from(number) << 3);
        put_number(out, 1);
    }
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_number(out, u64::from(number) << 3 | 2);
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, the lowest first.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_written_field_by_field() {
        let document = json!({
            "swagger": "2.0", "info": { "title": "t", "version": "v" }, "paths": {},
            "definitions": { "A": { "type": "object", "x-a": 1 } },
        });
        let mut expect = b"\x0a\x032.0".to_vec();
        expect.extend(b"\x12\x06\x0a\x01t\x12\x01v");
        expect.extend(b"\x42\x00");
        // Definitions, named schema "A", its type in a message of its own, the extension as YAML.
        expect.extend(b"\x4a\x1f\x0a\x1d\x0a\x01A\x12\x18\xb2\x01\x08\x0a\x06object\xfa\x01\x0a\x0a\x03x-a\x12\x03\x12\x011");
        assert_eq!(encode(&document), expect);
    }

    #[test]
    fn a_long_text_has_a_long_length() {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, &[b'x'; 300]);
        assert_eq!(out[..3], [0x0a, 0xac, 0x02]);
    }
}
