//! Every code a caller may see. Published ones are CSBS's own (docs/csbs-v1.md), conditions
//! CSBS has no code for get `KEDGE` codes. `docs/error-codes.md` is generated from here.

macro_rules! codes {
    ($($variant:ident $text:literal $meaning:literal;)+) => {
        /// What went wrong, as a caller's program reads it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What it means, for `docs/error-codes.md`.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

codes! {
    PolicyRunning "CSBS.1001" "a manual backup of the server is running";
    AutoBackupRunning "CSBS.6030" "an automatic backup of the server is running";
    ItemExecuting "CSBS.2003" "the backup is being made, restored or deleted";
    ItemNotFound "CSBS.3001" "no such backup";
    ItemNotAvailable "CSBS.4000" "the backup's status does not allow a restore";
    ServerNotFound "CSBS.6000" "no such server";
    ServerTerminated "CSBS.6001" "the server was terminated";
    TypeNotProtectable "CSBS.6003" "resources of this type cannot be backed up";
    ServerBusy "CSBS.6005" "the server's present status does not allow a backup";
    KindNotProtectable "CSBS.6006" "this kind of server cannot be backed up";
    NoVolumeToProtect "CSBS.6007" "the server has no disk to back up";
    SharedVolumeProtect "CSBS.6010" "the server has shared disks and the settings refuse them";
    TypeNotRestorable "CSBS.6013" "resources of this type cannot be restored";
    VolumeNotAttached "CSBS.6014" "a destination disk is not attached to the target server";
    TargetBusy "CSBS.6015" "the target server's present status does not allow a restore";
    KindNotRestorable "CSBS.6016" "this kind of server cannot be restored";
    NotOfThisItem "CSBS.6017" "a disk backup in the mapping is not part of this backup";
    PartialRestore "CSBS.6018" "a disk backup has no destination; all must be mapped";
    KindMismatch "CSBS.6019" "the target is of another kind than the source";
    NoVolumeToRestore "CSBS.6020" "the target server has no disks";
    SharedVolumeRestore "CSBS.6021" "a destination is a shared disk";
    DataOntoSystem "CSBS.6023" "a data disk's backup would overwrite a system disk";
    TargetTooSmall "CSBS.6024" "a destination is smaller than the disk was";
    ZoneMismatch "CSBS.6025" "the backup and the target are in different availability zones";
    ZoneWithoutBackup "CSBS.6027" "the server's availability zone has no backup storage";
    DedicatedStorage "CSBS.6033" "a disk lies on dedicated storage";
    StorageUnsupported "CSBS.6061" "a disk lies on storage that cannot be backed up";
    TooManyTags "CSBS.7000" "more tags than an object may carry";
    BadParameter "CSBS.9001" "a parameter is malformed; the text names it and says what was expected";
    Unavailable "CSBS.9998" "the catalogue or the identity service does not answer, or the service is full";
    Internal "CSBS.9999" "an error inside the service";
    NoSuchApi "APIGW.0101" "no such path";
    CloudSilent "KEDGE.0001" "the cloud did not answer, so the target is unknown";
    VolumeNotWritable "KEDGE.0002" "a destination disk is in a state that forbids writing";
    EncryptionMismatch "KEDGE.0003" "an encrypted disk's backup would go onto a disk in clear";
    RepositoryUnreachable "KEDGE.0005" "the backup repository cannot be reached";
    SnapshotMissing "KEDGE.0006" "the repository does not hold the backup's snapshot";
    KeyUnavailable "KEDGE.0008" "the key that opens the backup repository cannot be had";
    EvidenceTooWeak "KEDGE.0009" "less is known of the backup's bytes than the project demands, or it is too old; they are being read back";
    VolumeHeld "KEDGE.0010" "another job holds a destination disk";
    ItemLeased "KEDGE.0011" "a plan keeps the backup from being deleted; the text says which and until when";
    HalfWritten "KEDGE.0012" "a disk of the server is half written by a restore that failed; restore to it again first";
    DataDamaged "KEDGE.0013" "data the backup needs is damaged or missing in the repository";
    DamageNotLocated "KEDGE.0014" "something in the repository is damaged, and whether the backup needs it is not known yet; ask again";
    PlanMoved "KEDGE.0015" "something is not as it was when the plan was made; the text says what it was and is";
    TooManyLeases "KEDGE.0016" "as many plans of the project hold leases as may; end one, or let it run out";
    NoAvailableBackup "KEDGE.0017" "the server has no available backup";
    PlaceNotTold "KEDGE.0018" "whether the repository and its key outlast the loss of a zone is unknown: the settings do not tell where they lie";
    Unauthenticated "KEDGE.4010" "no token, or one that is unknown, expired or revoked; or a wrong user or password";
    Forbidden "KEDGE.4030" "the token does not entitle to this call or project";
    ProjectNotFound "KEDGE.4040" "no such project";
    TokenNotFound "KEDGE.4042" "the token asked about is unknown, expired or revoked";
    RestoreNotFound "KEDGE.4041" "no such restore";
    PlanNotFound "KEDGE.4043" "no such plan; plans are forgotten after a while";
    MethodNotAllowed "KEDGE.4050" "the path exists, the method does not";
    TooLarge "KEDGE.4130" "the request is larger than the configured limit";
    MediaType "KEDGE.4150" "the body must be application/json";
    TooManyRequests "KEDGE.4290" "too many logins at once or too many that failed, too many proofs that wait, or too many questions about fleets; try again later";
    Timeout "KEDGE.5040" "the request took longer than the configured limit";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_conditions_share_a_code() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
