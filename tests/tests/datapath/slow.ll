; A program that runs until it is told to end, or for ten seconds, and says when it has begun and when it is done: what
; reads a generation and is not done with it when the next comes. Made into slow.bpf.o by
;   llc-22 -march=bpfel -filetype=obj -o slow.bpf.o slow.ll
target triple = "bpfel"

@began = dso_local global i64 0, section ".bss", align 8
@ended = dso_local global i64 0, section ".bss", align 8
@stop = dso_local global i64 0, section ".bss", align 8
@_license = dso_local constant [11 x i8] c"Apache-2.0\00", section "license"

; bpf_ktime_get_ns is 5, bpf_loop 181.
define dso_local i32 @slow(ptr %context) section "classifier" !dbg !5 {
  %now = call i64 inttoptr (i64 5 to ptr)(), !dbg !11
  %until = alloca i64, align 8
  %end = add i64 %now, 10000000000, !dbg !11
  store i64 %end, ptr %until, !dbg !11
  store volatile i64 1, ptr @began, !dbg !11
  %rounds = call i64 inttoptr (i64 181 to ptr)(i32 8388608, ptr @round, ptr %until, i64 0), !dbg !11
  store volatile i64 1, ptr @ended, !dbg !11
  ret i32 0, !dbg !11
}

define internal i64 @round(i64 %index, ptr %until) noinline !dbg !12 {
  %turns = call i64 inttoptr (i64 181 to ptr)(i32 1000, ptr @turn, ptr null, i64 0), !dbg !16
  %now = call i64 inttoptr (i64 5 to ptr)(), !dbg !16
  %end = load i64, ptr %until, !dbg !16
  %late = icmp ugt i64 %now, %end, !dbg !16
  %told = load volatile i64, ptr @stop, !dbg !16
  %asked = icmp ne i64 %told, 0, !dbg !16
  %over = or i1 %late, %asked, !dbg !16
  %result = zext i1 %over to i64, !dbg !16
  ret i64 %result, !dbg !16
}

define internal i64 @turn(i64 %index, ptr %context) noinline !dbg !17 {
  ret i64 0, !dbg !18
}

!llvm.dbg.cu = !{!0}
!llvm.module.flags = !{!2, !3}
!0 = distinct !DICompileUnit(language: DW_LANG_C99, file: !1, isOptimized: true, emissionKind: FullDebug)
!1 = !DIFile(filename: "slow.ll", directory: "/")
!2 = !{i32 2, !"Debug Info Version", i32 3}
!3 = !{i32 7, !"Dwarf Version", i32 4}
!4 = !{}
!5 = distinct !DISubprogram(name: "slow", scope: !1, file: !1, line: 1, type: !6, unit: !0, spFlags: DISPFlagDefinition, retainedNodes: !4)
!6 = !DISubroutineType(types: !7)
!7 = !{!8, !9}
!8 = !DIBasicType(name: "int", size: 32, encoding: DW_ATE_signed)
!9 = !DIDerivedType(tag: DW_TAG_pointer_type, baseType: null, size: 64)
!10 = !DIBasicType(name: "long", size: 64, encoding: DW_ATE_signed)
!11 = !DILocation(line: 1, scope: !5)
!12 = distinct !DISubprogram(name: "round", scope: !1, file: !1, line: 2, type: !13, unit: !0, spFlags: DISPFlagLocalToUnit | DISPFlagDefinition, retainedNodes: !4)
!13 = !DISubroutineType(types: !14)
!14 = !{!10, !10, !9}
!16 = !DILocation(line: 2, scope: !12)
!17 = distinct !DISubprogram(name: "turn", scope: !1, file: !1, line: 3, type: !13, unit: !0, spFlags: DISPFlagLocalToUnit | DISPFlagDefinition, retainedNodes: !4)
!18 = !DILocation(line: 3, scope: !17)
