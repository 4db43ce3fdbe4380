//! SCTP without the kernel's help: INIT and INIT-ACK as bytes (RFC 9260, sections 3.3.2 and 3.3.3).
//!
//! Knows nothing of sockets. Called by the peers.

/// The IP protocol.
pub(crate) const PROTOCOL: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The parameter that an INIT-ACK must have (RFC 9260, section 3.3.3.1).
const STATE_COOKIE: [u8; 2] = [0, 7];
const COMMON_HEADER: usize = 12;
/// The smallest receiver window that an endpoint may announce.
const WINDOW: u32 = 1500;

/// What an SCTP packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// From.
    pub(crate) sport: u16,
    /// To.
    pub(crate) dport: u16,
    /// It opens an association; else it is the answer to what does.
    pub(crate) opens: bool,
    /// The sender's initiate tag.
    pub(crate) tag: u32,
}

impl Chunk {
    /// The packet that opens an association, or answers one whose tag is `to`.
    pub(crate) fn bytes(self, to: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        // An INIT is sent before the other's tag is known.
        bytes.extend(if self.opens { 0_u32 } else { to }.to_be_bytes());
        bytes.extend([0; 4]);
        let cookie: &[u8] = if self.opens { &[] } else { b"cook" };
        let length: u16 = if self.opens { 20 } else { 28 };
        bytes.extend([if self.opens { INIT } else { INIT_ACK }, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend(WINDOW.to_be_bytes());
        // One stream each way, and the first sequence number.
        bytes.extend([0, 1, 0, 1, 0, 0, 0, 1]);
        if !cookie.is_empty() {
            bytes.extend(STATE_COOKIE);
            bytes.extend([0, 8]);
            bytes.extend(cookie);
        }
        let sum = crc32c(&bytes);
        bytes[8..COMMON_HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// What a packet is, if it is one of these and nothing changed it on its way.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let kind = *bytes.get(COMMON_HEADER)?;
        let tag = bytes.get(COMMON_HEADER + 4..COMMON_HEADER + 8)?;
        let mut blank = bytes.to_vec();
        blank[8..COMMON_HEADER].fill(0);
        let intact = crc32c(&blank).to_le_bytes() == bytes[8..COMMON_HEADER];
        (intact && matches!(kind, INIT | INIT_ACK)).then(|| Self {
            sport: u16::from_be_bytes([bytes[0], bytes[1]]),
            dport: u16::from_be_bytes([bytes[2], bytes[3]]),
            opens: kind == INIT,
            tag: u32::from_be_bytes([tag[0], tag[1], tag[2], tag[3]]),
        })
    }
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
