//! The two checksums of partition tables and file systems, in the forms they are used.

const CRC32: [u32; 256] = table(0xedb8_8320);
const CRC32C: [u32; 256] = table(0x82f6_3b78);

/// GPT's checksum.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !update(&CRC32, !0, bytes)
}

/// The same polynomial without the usual inversions, as LVM uses it.
pub(crate) fn crc32_raw(seed: u32, bytes: &[u8]) -> u32 {
    update(&CRC32, seed, bytes)
}

/// The checksum of XFS and btrfs.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !update(&CRC32C, !0, bytes)
}

/// The same polynomial without the usual inversions, as ext4 and its journal use it.
pub(crate) fn crc32c_raw(seed: u32, bytes: &[u8]) -> u32 {
    update(&CRC32C, seed, bytes)
}

fn update(table: &[u32; 256], seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        table[usize::from(low ^ byte)] ^ (crc >> 8)
    })
}

const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte: u32 = 0;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ polynomial } else { crc >> 1 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(!crc32_raw(!0, b"123456789"), 0xcbf4_3926);
        assert_eq!(!crc32c_raw(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32(b""), 0);
    }
}
