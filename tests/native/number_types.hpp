// A type of numbers, bits and a threshold in; their values and the bits that fire out. Slow, plain,
// and another way than the package's own.
#pragma once

#include <cmath>
#include <cstdint>

#include "firing.hpp"

namespace tensorstate {

enum class Kind { kUnsigned, kSigned, kFloat };
struct Type {
    Kind kind;
    unsigned bytes, mantissa;  // mantissa: bits of a float's fraction
};
inline constexpr Type kTypes[] = {
    {Kind::kUnsigned, 1, 0}, {Kind::kUnsigned, 2, 0}, {Kind::kUnsigned, 4, 0},
    {Kind::kUnsigned, 8, 0}, {Kind::kSigned, 1, 0},   {Kind::kSigned, 2, 0},
    {Kind::kSigned, 4, 0},   {Kind::kSigned, 8, 0},   {Kind::kFloat, 2, 10},  // float16
    {Kind::kFloat, 2, 7},                                                     // bfloat16
    {Kind::kFloat, 4, 23},   {Kind::kFloat, 8, 52}};

inline std::uint64_t mask_of(Type type) { return ~std::uint64_t{0} >> (64 - 8 * type.bytes); }

// What the bits stand for; a long double of 64 bits of fraction holds each of them exactly.
inline long double value_of(Type type, std::uint64_t bits) {
    const std::uint64_t sign = bits >> (8 * type.bytes - 1);
    if (type.kind == Kind::kUnsigned) return static_cast<long double>(bits);
    if (type.kind == Kind::kSigned) {
        return sign != 0 ? -static_cast<long double>((~bits & mask_of(type))) - 1
                         : static_cast<long double>(bits);
    }
    const unsigned exponent_bits = 8 * type.bytes - 1 - type.mantissa;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const std::uint64_t all_ones = (std::uint64_t{1} << exponent_bits) - 1;
    const std::uint64_t fraction = bits & ((std::uint64_t{1} << type.mantissa) - 1);
    const std::uint64_t exponent = (bits >> type.mantissa) & all_ones;
    const int scale = (exponent == 0 ? 1 : static_cast<int>(exponent)) - bias -
                      static_cast<int>(type.mantissa);
    const std::uint64_t hidden = exponent == 0 ? 0 : std::uint64_t{1} << type.mantissa;
    long double value = std::ldexp(static_cast<long double>(hidden + fraction), scale);
    if (exponent == all_ones) value = fraction == 0 ? INFINITY : NAN;
    return sign != 0 ? -value : value;
}

// The bits of the number at place `rank` of the type's order: -infinity or the least one is 0.
inline std::uint64_t bits_at(Type type, std::uint64_t rank) {
    const std::uint64_t sign = std::uint64_t{1} << (8 * type.bytes - 1);
    if (type.kind == Kind::kUnsigned) return rank;
    if (type.kind == Kind::kSigned) return rank ^ sign;
    const std::uint64_t infinity = sign - (std::uint64_t{1} << type.mantissa);
    return rank <= infinity ? sign | (infinity - rank) : rank - infinity;  // one zero, -0
}

struct Range {
    bool folded, alike;
    Firing firing;
};

// What firing.py says, found another way: by a search for the first number above the threshold.
inline Range range_above(Type type, long double threshold) {
    const std::uint64_t sign = std::uint64_t{1} << (8 * type.bytes - 1);
    const std::uint64_t infinity = sign - (std::uint64_t{1} << type.mantissa);
    const std::uint64_t last = type.kind == Kind::kFloat ? 2 * infinity : mask_of(type);
    if (!(value_of(type, bits_at(type, last)) > threshold)) return {false, true, {}};
    std::uint64_t low = 0, high = last;
    while (low < high) {
        const std::uint64_t middle = low + (high - low) / 2;
        if (value_of(type, bits_at(type, middle)) > threshold) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    const std::uint64_t span = last - low + 1;
    if (type.kind != Kind::kFloat) {
        if (low == 0) return {false, true, {}};  // all of them: Python counts these by itself
        return {false, false, {bits_at(type, low), span}};
    }
    // A folded key is the signed distance from zero.
    return {low <= infinity, false, {(low - infinity) & mask_of(type), span}};
}

}  // namespace tensorstate
