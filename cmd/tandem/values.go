package main

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"tandem/internal/limit"
)

// Values are written alike wherever they stand: in a flag, in a TANDEM_ variable, in the configuration file.
// These are the types of all of them, besides texts and switches.

const day = 24 * time.Hour

// valueTypes has kong read every value by the functions of this file.
func valueTypes() kong.Option {
	return kong.OptionFunc(func(k *kong.Kong) error {
		registry := kong.NewRegistry().RegisterDefaults() // for the elements of lists
		for _, value := range []struct {
			kind   reflect.Type
			mapper kong.Mapper
		}{
			{reflect.TypeFor[time.Duration](), reader(parseDuration)},
			{reflect.TypeFor[netip.Prefix](), reader(parsePrefix)},
			{reflect.TypeFor[int](), reader(parseWhole)},
			{reflect.TypeFor[int64](), reader(parseWhole)},
			{reflect.TypeFor[uint16](), reader(parsePort)},
			{reflect.TypeFor[uint32](), reader(parseUint32)},
			{reflect.TypeFor[float64](), reader(parseNumber)},
		} {
			registry.RegisterType(value.kind, value.mapper)
			if err := kong.TypeMapper(value.kind, value.mapper).Apply(k); err != nil {
				return err
			}
		}
		return kong.KindMapper(reflect.Slice, list{registry.ForType(reflect.TypeFor[[]string]())}).Apply(k)
	})
}

// reader makes a mapper of a function that reads one value.
func reader[T any](parse func(string) (T, error)) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		var text string
		if err := ctx.Scan.PopValueInto("value", &text); err != nil {
			return err
		}
		value, err := parse(text)
		if err != nil {
			return err
		}
		target.Set(reflect.ValueOf(value).Convert(target.Type()))
		return nil
	}
}

// list takes blanks off the elements of a list.
type list struct{ elements kong.Mapper }

// Decode reads a list; kong calls it.
func (l list) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	token := ctx.Scan.Peek()
	if text, ok := token.Value.(string); ok && ctx.Value.Flag != nil && ctx.Value.Tag.Sep != -1 {
		parts := kong.SplitEscaped(text, ctx.Value.Tag.Sep)
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		ctx.Scan.Pop()
		ctx.Scan.PushTyped(kong.JoinEscaped(parts, ctx.Value.Tag.Sep), token.Type)
	}
	return l.elements.Decode(ctx, target)
}

// parseDuration reads 30d, 1d12h, and what time.ParseDuration takes.
func parseDuration(text string) (time.Duration, error) {
	bad := fmt.Errorf("%.20q: want a time such as 30d, 12h, 5m, 1.5s or 200ms", text)
	rest, negative := strings.CutPrefix(strings.TrimSpace(text), "-")
	sum := 0.0
	if days, further, ok := strings.Cut(rest, "d"); ok {
		number, err := parseNumber(days)
		if err != nil || number < 0 {
			return 0, bad
		}
		if sum, rest = number*float64(day), further; rest == "" {
			rest = "0"
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || strings.HasPrefix(rest, "+") || sum+float64(d) >= math.MaxInt64 {
		return 0, bad
	}
	d += time.Duration(sum)
	if negative {
		d = -d
	}
	return d, nil
}

// decimal is a number: 50, 1_000_000, 0.5, 1e6.
var decimal = regexp.MustCompile(`^[+-]?(\d+(_\d+)*(\.\d+)?|\.\d+)([eE][+-]?\d+)?$`)

// parseNumber reads a number.
func parseNumber(text string) (float64, error) {
	text = strings.TrimSpace(text)
	number, err := strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)
	if err != nil || !decimal.MatchString(text) {
		return 0, fmt.Errorf("%.20q: want a number such as 50, 0.5 or 1e6", text)
	}
	return number, nil
}

// parseWhole reads a whole number.
func parseWhole(text string) (int64, error) {
	number, err := parseNumber(text)
	if err != nil || number != math.Trunc(number) || math.Abs(number) > 1<<53 {
		return 0, fmt.Errorf("%.20q: want a whole number such as 50, 1_000_000 or 1e6", text)
	}
	return int64(number), nil
}

func parsePort(text string) (uint16, error) {
	number, err := parseWhole(text)
	if err != nil || number < 0 || number > math.MaxUint16 {
		return 0, fmt.Errorf("%.20q: want a port from 0 to 65535", text)
	}
	return uint16(number), nil
}

func parseUint32(text string) (uint32, error) {
	number, err := parseWhole(text)
	if err != nil || number < 0 || number > math.MaxUint32 {
		return 0, fmt.Errorf("%.20q: want a whole number from 0 to %d", text, math.MaxUint32)
	}
	return uint32(number), nil
}

// parsePrefix reads a network, or an address, which is a network of one.
func parsePrefix(text string) (netip.Prefix, error) {
	text = strings.TrimSpace(text)
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf(
			"%.50q: want an address such as 10.0.0.1, or a network such as 10.0.0.0/8", text)
	}
	return prefix, nil
}

// parseQuota reads 50/60s; off and 0 are no limit.
func parseQuota(text string) (limit.Quota, error) {
	calls, window, ok := strings.Cut(text, "/")
	number, err := parseWhole(calls)
	length, err2 := parseDuration(window)
	if ok && err == nil && err2 == nil {
		text = fmt.Sprintf("%d/%v", number, length)
	}
	return limit.ParseQuota(strings.TrimSpace(text))
}

// parseDelay reads 120ms or 70ms-150ms.
func parseDelay(text string) (delay [2]time.Duration, err error) {
	shortest, longest, ranged := strings.Cut(text, "-")
	if !ranged {
		longest = shortest
	}
	for i, part := range []string{shortest, longest} {
		if delay[i], err = parseDuration(part); err != nil {
			return delay, errors.New("want a time such as 120ms, or a range such as 70ms-150ms")
		}
	}
	return delay, nil
}

// textOf is the text of a default; "": there is none, or it goes without saying.
func textOf(value reflect.Value) string {
	switch value := value.Interface().(type) {
	case string, int, int64:
		return fmt.Sprint(value)
	case time.Duration:
		if value%day == 0 && value > day {
			return fmt.Sprintf("%dd", value/day)
		}
		text := value.String()
		for _, zero := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(text, zero) {
				text = text[:len(text)-2]
			}
		}
		return text
	case []string:
		return strings.Join(value, ",")
	default:
		return ""
	}
}
