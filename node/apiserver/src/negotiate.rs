//! In which form a client wants its answer, and in which form it sent its body.

use skein_api::status::Status;

/// One media type of an `Accept` header or a `Content-Type`, with its parameters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MediaType {
    /// Lower case, without parameters: `application/json`.
    pub(crate) essence: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| {
                (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned())
            })
            .collect();
        MediaType { essence, parameters }
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn quality(&self) -> f32 {
        self.parameter("q").and_then(|text| text.parse().ok()).unwrap_or(1.0)
    }

    /// Whether JSON will do.
    pub(crate) fn takes_json(&self) -> bool {
        matches!(self.essence.as_str(), "application/json" | "application/*" | "*/*")
    }
}

/// The types of an `Accept` header, best first. An absent header accepts everything.
pub(crate) fn accepted(header: Option<&str>) -> Vec<MediaType> {
    let mut types: Vec<MediaType> = header
        .filter(|header| !header.trim().is_empty())
        .unwrap_or("*/*")
        .split(',')
        .map(MediaType::parse)
        .filter(|media| media.quality() > 0.0)
        .collect();
    types.sort_by(|left, right| right.quality().total_cmp(&left.quality()));
    types
}

/// In which form objects are shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// As they are.
    Object,
    /// As rows that kubectl prints. The version of the table's own type.
    Table(&'static str),
    /// Only their metadata. The version of the type that says so.
    Metadata(&'static str),
}

const META_GROUP: &str = "meta.k8s.io";

impl Form {
    /// The best form that we can serve. Protobuf, which clients often put first, we cannot.
    ///
    /// * `has_rows`: whether what is asked for can be shown as a table.
    pub(crate) fn choose(accept: Option<&str>, has_rows: bool) -> Result<Self, Status> {
        let forms = accepted(accept);
        let forms = forms.iter().filter(|media| media.takes_json()).filter_map(Self::of);
        let mut served = forms.filter(|form| has_rows || !matches!(form, Form::Table(_)));
        served.next().ok_or_else(|| {
            if !has_rows {
                return Status::not_acceptable(&["application/json"]);
            }
            Status::not_acceptable(&[
                "application/json",
                "application/json;as=Table;v=v1;g=meta.k8s.io",
                "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
            ])
        })
    }

    /// What the `Content-Type` of an answer in this form is. Clients tell tables apart by the body.
    pub(crate) fn content_type(self) -> &'static str {
        "application/json"
    }

    fn of(media: &MediaType) -> Option<Self> {
        let Some(transformed) = media.parameter("as") else {
            return Some(Form::Object);
        };
        let version = match media.parameter("v")? {
            "v1" => "v1",
            "v1beta1" => "v1beta1",
            _ => return None,
        };
        match transformed {
            _ if media.parameter("g") != Some(META_GROUP) => None,
            "Table" => Some(Form::Table(version)),
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::Metadata(version)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expect: Option<Form>) {
        assert_eq!(Form::choose(Some(accept), true).ok(), expect, "{accept}");
    }

    #[test]
    fn the_first_form_that_we_can_serve_wins() {
        check("application/json", Some(Form::Object));
        check("*/*", Some(Form::Object));
        check("application/vnd.kubernetes.protobuf,application/json", Some(Form::Object));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some(Form::Table("v1")),
        );
        check("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", Some(Form::Object));
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some(Form::Metadata("v1")),
        );
        check(
            "application/json;q=0.1, application/json;as=Table;g=meta.k8s.io;v=v1",
            Some(Form::Table("v1")),
        );
    }

    #[test]
    fn a_client_that_takes_nothing_we_have_is_told_so() {
        check("application/vnd.kubernetes.protobuf", None);
        check("text/html", None);
        check("application/json;q=0", None);
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        assert_eq!(Form::choose(Some("text/html"), true).unwrap_err().code(), 406);
    }

    #[test]
    fn what_has_no_rows_is_no_table() {
        let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
        assert_eq!(Form::choose(Some(table), false).unwrap_err().code(), 406);
        assert_eq!(Form::choose(Some(&format!("{table}, application/json")), false), Ok(Form::Object));
    }

    #[test]
    fn a_client_that_says_nothing_gets_json() {
        assert_eq!(Form::choose(None, true), Ok(Form::Object));
        assert_eq!(Form::choose(Some(""), true), Ok(Form::Object));
    }
}
