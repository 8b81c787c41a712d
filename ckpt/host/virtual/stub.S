# What takes the place of a stat call in libc: the call itself, then the numbers that the workload is to see.
#
# A call site `mov $number,%eax; syscall` becomes `jmp block; syscall`: one block for each site, below. A block
# changes rax, rcx, r11 and the flags, as `syscall` does; it uses no stack (the red zone is the caller's), calls
# nothing and writes nothing but the two numbers in the caller's buffer: so threads and signals cannot disturb it.
# The zeros are filled in for each site, see stub.py, whose bytes are made from this file:
#
#     gcc -c stub.S -o stub.o && objcopy -O binary -j .text stub.o stub.bin
#
# An entry of the table is 64 bytes: 0 real inode; 8 real device as struct stat has it; 16 the same as struct
# statx has it; 24, 32, 40 what is shown instead; 48 is 1, or 0 in an empty entry, which ends the search.
# Source: syscall(2) for the registers; struct stat of <asm/stat.h>, struct statx of <linux/stat.h>.

        .text

        .macro  block name, buffer, inode_at, device_at, key_at
        .balign 128, 0xcc
\name:
        movl    $0x7fffffff, %eax               # the number of the call
        nopl    (%rax)                          # an instruction that stood before the site's `syscall`
        syscall
\name\()_after:
        testl   %eax, %eax
        jnz     4f
        movq    \buffer, %r11
        imulq   $0x61c88647, \inode_at(%r11), %rcx
        shrq    $16, %rcx
        andl    $0x7fffffff, %ecx               # the number of hashes less one
        shlq    $6, %rcx
        leaq    \name(%rip), %rax               # the table
\name\()_found_table:
        addq    %rax, %rcx
1:      cmpb    $0, 48(%rcx)
        je      3f
        movq    (%rcx), %rax
        cmpq    %rax, \inode_at(%r11)
        jne     2f
        movq    \key_at(%rcx), %rax
        cmpq    %rax, \device_at(%r11)
        jne     2f
        movq    24(%rcx), %rax
        movq    %rax, \inode_at(%r11)
        movq    \key_at+24(%rcx), %rax
        movq    %rax, \device_at(%r11)
3:      xorl    %eax, %eax
4:      jmp     . + 0x7fffffff                  # behind the site's `syscall`
\name\()_end:
2:      addq    $64, %rcx
        jmp     1b
        .endm

        block   stat_block, %rsi, 8, 0, 8       # stat, fstat, lstat
        block   at_block, %rdx, 8, 0, 8         # newfstatat
        block   statx_block, %r8, 0x20, 0x88, 16
        .balign 128, 0xcc
