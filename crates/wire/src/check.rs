//! `check_protectable` and `check_restorable`: questions and answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::explain::Explanation;

/// Body of the call on all resources: exactly one of the two verbs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesAction {
    /// Which servers can be backed up?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, nullable = false)]
    pub check_protectable: Option<Vec<ProtectableParam>>,
    /// Which backups can be restored to which targets?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, nullable = false)]
    pub check_restorable: Option<Vec<RestorableParam>>,
}

/// Can this server be backed up?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProtectableParam {
    /// The server.
    #[schema(min_length = 1, max_length = 255)]
    pub resource_id: String,
    /// `OS::Nova::Server`.
    #[schema(min_length = 1, max_length = 255)]
    pub resource_type: String,
}

/// Can this backup be restored to that target?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestorableParam {
    /// The backup; not its record.
    #[schema(min_length = 1, max_length = 255)]
    pub checkpoint_item_id: String,
    /// Where to.
    pub target: RestorableTarget,
}

/// A server and the disks to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestorableTarget {
    /// The server.
    #[schema(min_length = 1, max_length = 255)]
    pub resource_id: String,
    /// `OS::Nova::Server`.
    #[schema(min_length = 1, max_length = 255)]
    pub resource_type: String,
    /// Which disk backup goes to which disk; no backup and no disk twice.
    pub volumes: Vec<RestoreVolumeMapping>,
}

/// One line of a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreVolumeMapping {
    /// The disk backup: `extend_info.volume_backups[].id` of the backup.
    #[schema(min_length = 1, max_length = 255)]
    pub backup_id: String,
    /// The disk it goes to.
    #[schema(min_length = 1, max_length = 255)]
    pub volume_id: String,
}

/// Answer to whichever verb was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ResourcesAnswer {
    /// To `check_protectable`.
    Protectable(ProtectableAnswer),
    /// To `check_restorable`.
    Restorable(RestorableAnswer),
}

/// One answer per question, in the order asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProtectableAnswer {
    /// The answers.
    pub protectable: Vec<CheckResp>,
}

/// One answer per question, in the order asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestorableAnswer {
    /// The answers.
    pub restorable: Vec<CheckResp>,
    /// The record that was kept of them; only with `?receipt=true`. Not part of CSBS v1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub receipt: Option<Receipt>,
}

/// Receipts of a project, some at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReceiptList {
    /// The receipts in their order.
    pub receipts: Vec<Receipt>,
}

/// A verdict that was kept, as a line of an exported file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// JSON of what was asked, seen and answered, as it was signed, to the letter.
    pub body: String,
    /// Ed25519 over the bytes of `body`, hexadecimal.
    pub signature: String,
}

/// One answer: exactly these five keys, and a sixth only where it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckResp {
    /// The server asked about.
    pub resource_id: String,
    /// Its type as asked.
    pub resource_type: String,
    /// Yes or no.
    pub result: bool,
    /// Why not, for people; empty when `result` is true.
    pub error_msg: String,
    /// Why not, for programs; empty when `result` is true.
    pub error_code: String,
    /// Why, and what would mend it; only with `?explain=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub explanation: Option<Explanation>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_seeds_request_and_answer_read_and_print_as_published() {
        let request = json!({"check_restorable": [{
            "checkpoint_item_id": "8986ce68-3da7-4d29-9cc2-1921e9504975",
            "target": {
                "resource_type": "OS::Nova::Server",
                "resource_id": "5aa119a8-d25b-45a7-8d1b-88e127885635",
                "volumes": [{
                    "backup_id": "7ea119a8-d25b-43a7-8d1b-88e12788513a",
                    "volume_id": "45baf976-c20a-4894-a7c3-c94b7376bf55"}]}}]});
        let read: ResourcesAction = serde_json::from_value(request.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), request);

        let answer = json!({"restorable": [{
            "resource_id": "6507cb66-90dc-4a12-a573-c9f3398f899d",
            "resource_type": "OS::Nova::Server",
            "result": true, "error_msg": "", "error_code": ""}]});
        let read: ResourcesAnswer = serde_json::from_value(answer.clone()).unwrap();
        assert!(matches!(read, ResourcesAnswer::Restorable(_)));
        assert_eq!(serde_json::to_value(read).unwrap(), answer);
    }
}
