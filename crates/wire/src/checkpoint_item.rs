//! Backups: what users list.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tag::Tag;

/// Answer to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointItemBody {
    /// The backup.
    pub checkpoint_item: CheckpointItem,
}

/// Answer to list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointItemList {
    /// One page.
    pub checkpoint_items: Vec<CheckpointItem>,
    /// Where the next page is; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub checkpoint_items_links: Option<Vec<Link>>,
}

/// A link to another page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// `next`.
    pub rel: String,
    /// An absolute URL.
    pub href: String,
}

/// Answer to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// How many backups match.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub count: u64,
}

/// The backup of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointItem {
    /// Its id.
    pub id: String,
    /// Its record.
    pub checkpoint_id: String,
    /// Its name.
    pub name: String,
    /// What the user gave, `""` when nothing.
    pub description: String,
    /// `protecting`, `available`, `restoring`, `error` or `deleting`.
    pub status: String,
    /// The server.
    pub resource_id: String,
    /// `OS::Nova::Server`.
    pub resource_type: String,
    /// When it was asked for.
    pub created_at: String,
    /// Last change.
    pub updated_at: String,
    /// The moment the data stands for; null until known.
    pub protected_at: Option<String>,
    /// When retention removes it; null for never.
    pub expired_at: Option<String>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// The server as it was.
    pub backup_data: BackupData,
    /// Everything else.
    pub extend_info: ExtendInfo,
    /// Always null.
    pub periodic_type: Option<String>,
    /// Always null; `extend_info.progress` counts.
    #[schema(minimum = 0, maximum = 100)]
    pub progress: Option<u8>,
}

/// The server as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupData {
    /// `""`: unknown.
    #[serde(rename = "__openstack_region_name")]
    pub openstack_region_name: String,
    /// `QEMU`.
    pub cloudservicetype: String,
    /// System disk of the flavor, GB; 0 when it boots from a volume.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub disk: u64,
    /// `gold`, `private`, `market`, or `""` when unknown.
    pub imagetype: String,
    /// MB.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub ram: u64,
    /// Virtual processors.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub vcpus: u64,
    /// Public address, `""` when unknown.
    pub eip: String,
    /// Address inside the project, `""` when unknown.
    pub private_ip: String,
}

/// How the backup was made, and what of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtendInfo {
    /// Made by a schedule.
    pub auto_trigger: bool,
    /// kB/s.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub average_speed: u64,
    /// Always null: nothing is copied between regions.
    pub copy_from: Option<String>,
    /// `na`.
    pub copy_status: String,
    /// `{}` when nothing failed.
    pub fail_code: FailCode,
    /// `""`, `backup`, `restore` or `delete`.
    pub fail_op: String,
    /// What failed and what to do, `""` when nothing did.
    pub fail_reason: String,
    /// `backup`.
    pub image_type: String,
    /// Built on an earlier backup.
    pub incremental: bool,
    /// Per cent of the work in progress.
    #[schema(minimum = 0, maximum = 100)]
    pub progress: u8,
    /// The server's availability zone.
    pub resource_az: String,
    /// The server's name.
    pub resource_name: String,
    /// `OS::Nova::Server`.
    pub resource_type: String,
    /// Data of all disks, MB.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub size: u64,
    /// Per cent of the data that took no room in the repository.
    #[schema(minimum = 0, maximum = 100)]
    pub space_saving_ratio: u8,
    /// When the backup was complete; null before.
    pub finished_at: Option<String>,
    /// `backup` when it can be restored, else `na`.
    pub supported_restore_mode: String,
    /// Images made of the backup: none.
    pub os_images_data: Vec<OsImage>,
    /// Fast restore: false.
    pub support_lld: bool,
    /// The job that made it.
    pub taskid: String,
    /// `QEMU`.
    pub hypervisor_type: String,
    /// One per disk.
    pub volume_backups: Vec<VolumeBackup>,
}

/// What failed; an object without members when nothing did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailCode {
    /// A text of digits: some clients want a text, others digits.
    #[serde(rename = "Code", default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, pattern = "^[0-9]+$")]
    pub code: Option<String>,
    /// The same for people.
    #[serde(rename = "Description", default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub description: Option<String>,
}

/// An image made of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OsImage {
    /// Its id.
    pub image_id: String,
}

/// The backup of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeBackup {
    /// The `backup_id` of mappings.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `creating`, `available`, `restoring`, `error` or `deleting`.
    pub status: String,
    /// Of the system disk.
    pub bootable: bool,
    /// The disk.
    pub source_volume_id: String,
    /// The disk's name.
    pub source_volume_name: String,
    /// The disk's size, GB.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub source_volume_size: u64,
    /// Data, MB.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub size: u64,
    /// MB/s.
    #[schema(minimum = 0, maximum = 9223372036854775807_i64)]
    pub average_speed: u64,
    /// Per cent of the data that took no room in the repository.
    #[schema(minimum = 0, maximum = 100)]
    pub space_saving_ratio: u8,
    /// Built on an earlier backup.
    pub incremental: bool,
    /// `backup`.
    pub image_type: String,
    /// `""`: no cloud snapshot is kept.
    pub snapshot_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fail_code_is_an_object_with_or_without_members() {
        assert_eq!(serde_json::to_string(&FailCode::default()).unwrap(), "{}");
        let failed =
            FailCode { code: Some("6000".to_owned()), description: Some("gone".to_owned()) };
        assert_eq!(
            serde_json::to_string(&failed).unwrap(),
            r#"{"Code":"6000","Description":"gone"}"#
        );
    }
}
