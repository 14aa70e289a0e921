//! What every object needs.

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Never reached: nothing here can panic, and the verifier would refuse a call to this.
    loop {}
}

/// The kernel gives GPL-only helpers to nobody else.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
